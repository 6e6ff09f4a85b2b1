"""What every job shares: the flags, logs on stderr, errors turned into exit codes, one JSON line last on stdout.

Runs in the driver. A job is `jobs/<verb>.py`: it reads the config, joins Ray where the stage needs it, calls one stage
function and prints its result. Exit codes: 0 done, 2 the caller's fault (UserError), 1 ours (anything else), 130 Ctrl-C.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from typing import Annotated, Any

import typer
from rich.logging import RichHandler

from firewall_ray.cluster.connect import connected, submitted_job
from firewall_ray.cluster.display import console
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.errors import FirewallRayError, UserError
from firewall_ray.stages import load_stage
from firewall_ray.stages.stage import StageResult
from firewall_ray.store.layout import ArtifactStore
from firewall_ray.store.leases import WHOLE_ROOT, lease

ConfigOption = Annotated[str, typer.Option("--config", help="YAML file of the run; examples in jobs/configs/.")]
RootOption = Annotated[str | None, typer.Option("--root", help="Artifact folder or URI; above the config's own.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override one value: key.path=value. Repeatable.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N queries, for a quick try.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Do it again although it is finished. Deletes what is there.")]
RetryErrorsOption = Annotated[
    bool, typer.Option("--retry-errors", help="Make the rows that have an error again, and no others; also of a finished dataset.")
]

logger = logging.getLogger("firewall_ray")


class JobContext:
    """What a job's body needs: the resolved config, the store, and a place for its result."""

    def __init__(self, config: RunConfig, store: ArtifactStore) -> None:
        self.config = config
        self.store = store
        self.results: list[StageResult] = []

    def report(self, result: StageResult) -> None:
        """Keep a stage's result for the closing JSON line and log it."""
        self.results.append(result)
        logger.info("%s: %s", result["stage"], summary(result))


def run_stage(
    verb: str, config: str, root: str | None, overrides: list[str] | None, *, models: list[str] | None = None, **options: Any
) -> None:
    """The whole of a job that is one stage. options: of the stage's function; models: so too, and of its lease."""
    stage = load_stage(verb).of_models(models)
    if models is not None:
        options["models"] = models
    with job(verb, config, root, overrides, needs_ray=stage.needs_ray, reads=stage.reads, writes=stage.writes) as context:
        for result in stage.results(context.config, context.store, **options):
            context.report(result)


def summary(result: StageResult) -> str:
    """One readable line of a stage's result.

    >>> summary({"stage": "label", "action": "run", "labels": 1500})
    'action run, labels 1,500'
    """
    facts = [f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in result.items() if key != "stage"]
    return ", ".join(facts)


@contextmanager
def job(
    verb: str,
    config_path: str,
    root: str | None,
    overrides: list[str] | None,
    *,
    needs_ray: bool,
    reads: Sequence[str] = (),
    writes: Sequence[str] = (WHOLE_ROOT,),
) -> Iterator[JobContext]:
    """Wraps a job's body. On the way out prints the JSON line, or the error, and exits with the right code.

    reads, writes: folders under ROOT that the body uses, see `leases.lease`: another job that writes them, or uses those that
    this one writes, is waited for.
    """
    # On the one console of progress, or log lines would tear its live display.
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", datefmt="[%X]", handlers=[RichHandler(console=console, show_path=False)]
    )
    started = time.monotonic()
    with exit_codes(verb):
        # Whatever anybody prints, Ray's workers included, goes to stderr: stdout is for the JSON line.
        with redirect_stdout(sys.stderr), ExitStack() as stack:
            # From what costs least to what takes longest: a wrong flag, a ROOT that cannot be written, another job, a cluster.
            config = load_config(config_path, overrides or (), root)
            store = ArtifactStore(config.root)
            store.check_writable()
            _warn_of_throwaway_root(config.root)
            if reads or writes:
                ray_job = submitted_job().get("metadata", {}).get("job_submission_id")
                # Before Ray, so that a job that waits holds nothing of a cluster. Left after Ray: by then no worker writes any
                # more.
                stack.enter_context(lease(store, verb, reads=reads, writes=writes, ray_job=ray_job))
            if needs_ray:
                stack.enter_context(connected(config.ray))
            context = JobContext(config, store)
            yield context
    # Behind the redirection: this line alone goes to the real stdout.
    elapsed_s = round(time.monotonic() - started, 2)
    print(
        json.dumps({"job": verb, "root": config.root, "elapsed_s": elapsed_s, "stages": context.results}, default=str), flush=True
    )


@contextmanager
def exit_codes(verb: str) -> Iterator[None]:
    """Turns errors into one message on stderr and SystemExit with the code that says whose fault it is."""
    try:
        yield
    except FirewallRayError as e:
        # markup=False: a message may hold [brackets]. soft_wrap: it stays one line, for whoever searches a log.
        console.print(f"{verb} failed: {e}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2 if isinstance(e, UserError) else 1) from e
    except KeyboardInterrupt:
        console.print(f"{verb} interrupted; run the same command again to go on.", style="bold red")
        raise SystemExit(130) from None


def run(main: Callable[..., None]) -> None:
    """A job's `main` as a command, see `typer.run`.

    After a failure or a signal the process ends without the interpreter's clean-up: what a stopped Ray Data pipeline leaves behind,
    threads in Ray's C++ code, makes its garbage collection crash, SIGABRT where the exit code should say 143. All that matters is
    closed by then: the lease, Ray, the files.
    """
    try:
        typer.run(main)
    except SystemExit as e:
        if not isinstance(e.code, int) or e.code == 0 or "ray" not in sys.modules:
            raise
        # `os._exit` flushes nothing.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(e.code)


def _warn_of_throwaway_root(root: str) -> None:
    # Where Ray unpacks the working directory of a submitted job, on every node.
    in_package_copy = "/runtime_resources/working_dir_files/" in os.getcwd()
    if in_package_copy and "://" not in root and not os.path.isabs(root):
        logger.warning(
            "ROOT %r is relative, and a submitted job runs in a copy of the working directory that Ray deletes later. "
            "Pass --root with an absolute path or a URI.",
            root,
        )
