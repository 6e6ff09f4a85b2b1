"""A file of outcomes -> queries/ and grades/: python jobs/import_outcomes.py --config FILE"""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, run, run_stage


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Read the answers, graded already, of the config's queries.outcomes. Then go on with label, train_router, score, report.

    Needs no Ray and no model. The file has a row for each answer: query, model, correct, and what else queries.outcomes.columns
    names. Or a row for each query, with a column that maps every model to its verdict: queries.outcomes.columns.verdicts.
    """
    run_stage("import_outcomes", config, root, set_, limit=limit, force=force)


if __name__ == "__main__":
    run(main)
