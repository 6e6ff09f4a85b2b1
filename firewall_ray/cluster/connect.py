"""The driver's connection to Ray: the cluster that the job was submitted to, or a Ray of its own on this machine."""

import json
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from firewall_ray.config.run import RayConfig
from firewall_ray.errors import SystemFailure

# Two engines and the small actors of two Ray Data pipelines each reserve a CPU; on fewer a job would wait for ever.
MIN_LOCAL_CPUS = 8

WORKER_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}

logger = logging.getLogger("firewall_ray")


def submitted_job() -> dict[str, Any]:
    """What Ray told this process about the submitted job that it is: `runtime_env`, `metadata`. Empty for any other process."""
    found: dict[str, Any] = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    return found


@contextmanager
def connected(config: RayConfig) -> Iterator[None]:
    """Joins the cluster that the job was submitted to, or starts a local Ray, and leaves it; keeps a connection that is there."""
    import ray  # Seconds to import; the jobs that need no Ray start without it.

    if ray.is_initialized():
        yield
        return
    # Never by accident into a Ray that somebody else started on this machine: that takes ray.address: auto.
    address = config.address or os.environ.get("RAY_ADDRESS") or "local"
    # Workers' output stays in Ray's logs and dashboard; what a person should see comes through `progress.watch`.
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # A submitted job's own env_vars are in this process' environment already, and Ray refuses to be told them twice.
    env_vars = {name: value for name, value in WORKER_ENVIRONMENT.items() if name not in os.environ}
    if address == "local":
        os.environ.update(env_vars)  # inherited; a runtime_env would make Ray start every worker a second time
        options["num_cpus"] = config.num_cpus or max(os.cpu_count() or 1, MIN_LOCAL_CPUS)
        options["include_dashboard"] = config.dashboard
        if config.object_store_memory_gib is not None:
            options["object_store_memory"] = int(config.object_store_memory_gib * 2**30)
    else:
        options["runtime_env"] = {"env_vars": env_vars}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        context = ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise SystemFailure(f"Cannot join Ray at {address} (ray.address, else RAY_ADDRESS, else a local one): {e}") from e
    # Ray's own handler, put in place by init, exits with 15; `lease` has one that exits as a shell expects of SIGTERM, with 143.
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)
    _quieten_ray_data()
    if address == "local" and context.dashboard_url:
        logger.info("Ray dashboard: http://%s", context.dashboard_url)
    try:
        yield
    finally:
        ray.shutdown()


def _quieten_ray_data() -> None:
    """Stages show their own progress; Ray Data's bars and its line for every dataset would drown it."""
    from ray.data import DataContext

    # Ray 2.60 announces named parameters for what map_batches hands to actors, but has none for concurrency and restarts.
    warnings.filterwarnings("ignore", message=".*ray_remote_args. is deprecated")
    DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # says once that the bars are off
