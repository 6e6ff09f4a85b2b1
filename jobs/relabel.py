"""Live queries -> labels -> a new router, which replaces the one in service only where it is better. See firewall_ray/relabel/."""

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from firewall_ray.cli import ConfigOption, RootOption, SetOption, job, run
from firewall_ray.cluster.display import console
from firewall_ray.config.serve_file import ServeFile
from firewall_ray.relabel.stores import FOLDER, FoldedStore
from firewall_ray.schemas import LABEL_DESIGNS
from serve_app.deploy import SERVE_CONFIG, read_serve_config

NameOption = Annotated[str, typer.Option("--name", help="Of this round: a date does well. The new router is <design>-<name>.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Draw at most so many queries; each is sampled n times.")]
ReferencesOption = Annotated[
    str | None,
    typer.Option(
        help="What is right for them: .jsonl, .csv or .parquet of query_id (or prompt, or question), reference, and task. "
        "Questions that a task of the config asks need none."
    ),
]
ServeOption = Annotated[
    str,
    typer.Option("--serve-config", help="Ray Serve's config file as it was deployed last: it names the router in service."),
]
DeployOption = Annotated[bool, typer.Option("--deploy", help="Deploy the new router, if it is better.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Do this round again from the draw on. Deletes what it has.")]


def main(
    config: ConfigOption,
    name: NameOption,
    root: RootOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    references: ReferencesOption = None,
    serve_config: ServeOption = SERVE_CONFIG,
    deploy: DeployOption = False,
    force: ForceOption = False,
) -> None:
    """Draw queries from ROOT/decisions, sample both models, grade, label, train a router, compare it with the one in service.

    All of it lies in ROOT/relabel/<name>, but for the new router in ROOT/routers; nothing in service is overwritten. A killed round
    goes on where it stopped when the same command is run again. The comparison is in ROOT/relabel/<name>/comparison, whoever wins;
    with the new router's serve_config.yaml, if it does.
    """
    reads = ["labels", "routers", FOLDER]
    # The round's own folder, and its router whichever design that is of. Who samples, grades or reports need not wait for it.
    writes = [f"{FOLDER}/{name}", *(f"routers/{design}-{name}" for design in LABEL_DESIGNS)]
    with job("relabel", config, root, set_, needs_ray=True, reads=reads, writes=writes) as context:
        # Seconds to import, which --help need not wait for.
        from firewall_ray.relabel.comparison import SERVE_FILE, load_comparison, verdict
        from firewall_ray.relabel.run import run_relabel

        serve_file = ServeFile(read_serve_config(serve_config), context.config)
        for result in run_relabel(context.config, context.store, name, serve_file, limit=limit, references=references, force=force):
            context.report(result)
        folded = FoldedStore(context.config.root, name)
        found, dataset = load_comparison(folded), folded.comparison()
        arguments = [
            "--config",
            config,
            *(["--root", root] if root else []),
            *(word for value in set_ or () for word in ("--set", value)),
        ]
        _say(f"\n{verdict(found)}\nThe comparison: {dataset.path}/comparison.md")
        if found["is_better"] and not deploy:
            _say(f"To deploy it: {shlex.join(_command(arguments, f'{dataset.path}/{SERVE_FILE}'))}")
    if found["is_better"] and deploy:  # after the job has left its own Ray, if it had one: the application's is meant
        # A copy on this disk: ROOT may be a URI, and `serve_app.deploy` reads a file.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / SERVE_FILE
            path.write_bytes(dataset.read_bytes(SERVE_FILE))
            # What is shown says `python`; what is run is this interpreter, with these packages.
            command = [sys.executable, *_command(arguments, str(path))[1:]]
            done = subprocess.run(command, stdout=subprocess.DEVNULL)  # where it would print a JSON line of its own
        if done.returncode:
            raise SystemExit(done.returncode)
        _say(f"Deployed {found['new']}. From now on --serve-config is {dataset.path}/{SERVE_FILE}; {serve_config} goes back.")


def _command(arguments: list[str], serve_config: str) -> list[str]:
    return ["python", "-m", "serve_app.deploy", *arguments, "--serve-config", serve_config]


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
