"""Labels to routers: `routers/<design>/`, a Hugging Face folder and its card. See firewall_ray/stages/train_router.py."""

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, run, run_stage


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, limit: LimitOption = None, force: ForceOption = False
) -> None:
    """Train one router for each label design in router.designs, with Ray Train and DeepSpeed. --limit: rows of each split."""
    run_stage("train_router", config, root, set_, limit=limit, force=force)


if __name__ == "__main__":
    run(main)
