"""queries/ and the pair's grades -> labels/: python jobs/label.py --config FILE"""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, job, run
from firewall_ray.stages.label import run_labeling


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Compute every label design of every query that both models of the pair have grades of. Needs no Ray."""
    with job("label", config, root, set_, needs_ray=False, reads=["queries", "grades"], writes=["labels"]) as context:
        context.report(run_labeling(context.config, context.store, limit=limit, force=force))


if __name__ == "__main__":
    run(main)
