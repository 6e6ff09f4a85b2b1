"""queries/ and the pair's grades -> labels/: python jobs/label.py --config FILE"""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, run, run_stage


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Compute every label design of every query that both models of the pair have grades of. Needs no Ray."""
    run_stage("label", config, root, set_, limit=limit, force=force)


if __name__ == "__main__":
    run(main)
