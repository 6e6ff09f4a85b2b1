"""Labels to routers: `routers/<design>/`, a Hugging Face folder and its card. See firewall_ray/stages/train_router.py."""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, job, run
from firewall_ray.stages.train_router import CHECKPOINTS_FOLDER, run_training


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Train one router for each label design in router.designs, with Ray Train and DeepSpeed. --limit: rows of each split."""
    writes = ["routers", CHECKPOINTS_FOLDER]
    with job("train_router", config, root, set_, needs_ray=True, reads=["labels"], writes=writes) as context:
        context.report(run_training(context.config, context.store, limit=limit, force=force))


if __name__ == "__main__":
    run(main)
