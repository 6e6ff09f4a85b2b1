"""What every job shares: the flags, logs on stderr, errors turned into exit codes, one JSON line last on stdout.

Runs in the driver. A job is `jobs/<verb>.py`: it reads the config, joins Ray where the stage needs it, calls one stage
function and prints its result. Exit codes: 0 done, 2 the caller's fault (UserError), 1 ours (anything else), 130 Ctrl-C.
"""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import ray
import typer
from rich.console import Console
from rich.logging import RichHandler

from firewall_ray.artifacts import ArtifactStore
from firewall_ray.config import RayConfig, RunConfig, load_config
from firewall_ray.errors import FirewallRayError, UserError

ConfigOption = Annotated[str, typer.Option("--config", help="YAML file of the run; examples in jobs/configs/.")]
RootOption = Annotated[str | None, typer.Option("--root", help="Artifact folder or URI; above the config's own.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", help="Override one value: key.path=value. Repeatable.")]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, help="Only the first N queries, for a quick try.")]
ForceOption = Annotated[bool, typer.Option("--force", help="Do it again although it is finished. Deletes what is there.")]

StageResult = dict[str, Any]
console = Console(stderr=True)
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


def summary(result: StageResult) -> str:
    """One readable line of a stage's result."""
    facts = [f"{key} {value:,}" if isinstance(value, int) else f"{key} {value}" for key, value in result.items() if key != "stage"]
    return ", ".join(facts)


@contextmanager
def job(verb: str, config_path: str, root: str | None, overrides: list[str] | None, *, needs_ray: bool) -> Iterator[JobContext]:
    """Wraps a job's body. On the way out prints the JSON line, or the error, and exits with the right code."""
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", datefmt="[%X]", handlers=[RichHandler(console=console, show_path=False)]
    )
    started = time.monotonic()
    try:
        config = load_config(config_path, overrides or (), root)
        store = ArtifactStore(config.root)
        store.check_writable()
        _warn_of_throwaway_root(config.root)
        if needs_ray:
            connect(config.ray)
        context = JobContext(config, store)
        yield context
    except FirewallRayError as e:
        console.print(f"{verb} failed: {e}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(2 if isinstance(e, UserError) else 1) from e
    except KeyboardInterrupt:
        console.print(f"{verb} interrupted; run the same command again to go on.", style="bold red")
        raise SystemExit(130) from None
    elapsed_s = round(time.monotonic() - started, 2)
    print(
        json.dumps({"job": verb, "root": config.root, "elapsed_s": elapsed_s, "stages": context.results}, default=str), flush=True
    )


def connect(config: RayConfig) -> None:
    """Join the cluster of this environment, or start a local Ray. Does nothing when already connected."""
    if ray.is_initialized():
        return
    # The driver's environment reaches workers of a local Ray anyway; these must also reach those of a cluster.
    env_vars = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    local: dict[str, Any] = {}
    if config.address is None and "RAY_ADDRESS" not in os.environ and "RAY_JOB_ID" not in os.environ:
        local = {"num_cpus": config.num_cpus, "include_dashboard": config.dashboard}
        if config.object_store_memory_gib is not None:
            local["object_store_memory"] = int(config.object_store_memory_gib * 2**30)
    ray.init(address=config.address, runtime_env={"env_vars": env_vars}, logging_level=logging.WARNING, **local)
    url = ray._private.worker.global_worker.node.address_info.get("webui_url") if local else None
    if url:
        logger.info("Ray dashboard: http://%s", url)


def _warn_of_throwaway_root(root: str) -> None:
    in_package_copy = "/runtime_resources/working_dir_files/" in os.getcwd()
    if in_package_copy and "://" not in root and not os.path.isabs(root):
        logger.warning(
            "ROOT %r is relative, and a submitted job runs in a copy of the working directory that Ray deletes later. "
            "Pass --root with an absolute path or a URI.",
            root,
        )


def is_interactive() -> bool:
    return sys.stderr.isatty()
