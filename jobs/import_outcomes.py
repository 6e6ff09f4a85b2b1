"""A file of outcomes -> queries/ and grades/: python jobs/import_outcomes.py --config FILE"""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, job, run
from firewall_ray.stages.import_outcomes import run_import


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Read the answers, graded already, of the config's queries.outcomes. Then go on with label, train_router, score, report.

    Needs no Ray and no model. The file has a row for each answer: query, model, correct, and what else queries.outcomes.columns
    names.
    """
    with job("import_outcomes", config, root, set_, needs_ray=False, writes=["queries", "grades"]) as context:
        for result in run_import(context.config, context.store, limit=limit, force=force):
            context.report(result)


if __name__ == "__main__":
    run(main)
