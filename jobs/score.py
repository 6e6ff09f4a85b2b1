"""Prompts to scores (`scores/<router>/`), or a user's own queries to routes. See stages/score.py and stages/route.py."""

from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, exit_codes, job, run, run_stage
from firewall_ray.errors import ConfigError


def main(
    config: ConfigOption,
    root: RootOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    force: ForceOption = False,
    queries: Annotated[
        str | None,
        typer.Option(help="Route your own queries instead: Parquet file, folder or URI with a prompt or a question column."),
    ] = None,
    router: Annotated[str | None, typer.Option(help="Router to route them with. Default: the first of router.designs.")] = None,
    strong_fraction: Annotated[float | None, typer.Option(help="Share of them for the strong model, 0 to 1; met exactly.")] = None,
    num_strong: Annotated[int | None, typer.Option(help="Or how many of them.")] = None,
    out: Annotated[str | None, typer.Option(help="Parquet file: your rows with query_id, p_weak and route, in order.")] = None,
) -> None:
    """Score every query with every router; or, with --queries, split your own queries under an exact strong-call budget."""
    if queries is None:
        if any(option is not None for option in (router, strong_fraction, num_strong, out)):
            # `run_stage` has its own; here no job has begun.
            with exit_codes("score"):
                raise ConfigError("--router, --strong-fraction, --num-strong and --out go with --queries FILE.")
        run_stage("score", config, root, set_, limit=limit, force=force)
        return
    # `route_file` joins Ray itself, once the budget and the file have been checked. Its rows go to --out, not under ROOT.
    with job("score", config, root, set_, needs_ray=False, reads=["routers"], writes=[]) as context:
        from firewall_ray.stages.route import check_budget, route_file  # seconds to import

        check_budget(strong_fraction, num_strong)
        if out is None:
            raise ConfigError("--queries needs --out FILE for the routed rows.")
        context.report(
            route_file(
                context.store,
                router or context.config.router.designs[0],
                queries,
                out,
                context.config.scoring,
                strong_fraction=strong_fraction,
                num_strong=num_strong,
                seed=context.config.evaluation.seed,
                ray_config=context.config.ray,
            )
        )


if __name__ == "__main__":
    run(main)
