"""The whole way on a cluster, in one command: the pipeline as a Ray job that ends with its application deployed."""

import asyncio
import logging
import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from firewall_ray.cli import ConfigOption, ForceOption, LimitOption, RootOption, SetOption, exit_codes
from firewall_ray.cluster.display import console
from firewall_ray.config.run import load_config
from firewall_ray.config.strict_yaml import load_yaml
from firewall_ray.errors import ConfigError, SystemFailure
from serve_app.deploy import SERVE_CONFIG, ServeConfigOption, read_serve_config

REPOSITORY = Path(__file__).resolve().parents[1]
RECONNECT_S = 2.0


def main(
    config: ConfigOption,
    root: RootOption = None,
    set_: SetOption = None,
    limit: LimitOption = None,
    force: ForceOption = False,
    first: Annotated[str | None, typer.Option("--from", help="Redo this stage of the pipeline and those after it.")] = None,
    serve_config: ServeConfigOption = SERVE_CONFIG,
    runtime_env: Annotated[
        str, typer.Option("--runtime-env", help="YAML file; the working directory is this repository.")
    ] = "jobs/runtime_env.yaml",
) -> None:
    """Submit the pipeline and the deployment of its router as one Ray job, and follow it to its end.

    The cluster is the one at RAY_API_SERVER_ADDRESS (http://HEAD:8265), else RAY_ADDRESS, else one that runs on this machine;
    RAY_AUTH_MODE=token where it asks for a token. Relative paths are those of this repository, which is uploaded; absolute ones
    are read on the cluster. ROOT must be a URI or an absolute path that all nodes reach.

    The job's log is printed as it comes; the exit code is the job's: 0 when the application runs, 2 when something handed in is
    wrong, 1 otherwise. Ctrl-C leaves the job running (130). Submitted again, it skips what is finished, goes on where it was
    stopped, and deploys what has changed.
    """
    logging.getLogger("ray").setLevel(logging.WARNING)
    with exit_codes("submit"):
        resolved = check_paths(config, root, set_, serve_config)
        shared = ["--config", config, *_option("--root", root), *(word for value in set_ or () for word in ("--set", value))]
        own = [*_option("--limit", limit), *(["--force"] if force else []), *_option("--from", first)]
        # The second begins only where the first ended with 0, and the job's exit code is that of the last one that ran.
        entrypoint = " && ".join(
            [
                shlex.join(["python", "jobs/pipeline.py", *shared, *own]),
                shlex.join(["python", "-m", "serve_app.deploy", *shared, "--serve-config", serve_config]),
            ]
        )
        raise SystemExit(run(entrypoint, _runtime_env(runtime_env), {"config": config, "root": resolved or "the config's own"}))


def check_paths(config: str, root: str | None, overrides: list[str] | None, serve_config: str) -> str | None:
    """ROOT; None where only the cluster has the config. Raises ConfigError for what is known to be wrong before an upload."""
    # The job runs in a copy of it, so relative paths mean the same here and there.
    os.chdir(REPOSITORY)
    # An absolute path that is not here lies on the cluster, where it is checked.
    if not os.path.isabs(config) or os.path.exists(config):
        root = load_config(config, overrides or (), root).root
    if not os.path.isabs(serve_config) or os.path.exists(serve_config):
        read_serve_config(serve_config)
    if root is not None and "://" not in root and not os.path.isabs(root):
        raise ConfigError(
            f"root: {root!r} is relative, and would lie in a copy of this repository that Ray deletes later. Pass --root "
            "with a URI such as s3://bucket/run, or with the absolute path of a folder that all nodes share."
        )
    return root


def run(entrypoint: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> int:
    """Submit, follow, and return the exit code of the job. Raises SystemFailure where the cluster cannot be reached or refuses."""
    from ray.exceptions import RayError  # Seconds to import: --help and a wrong config answer at once.
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient()
        job_id = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env, metadata={"job": "submit", **metadata})
    except (ConnectionError, RuntimeError, ValueError, RayError) as e:
        raise SystemFailure(f"The cluster does not take the job (RAY_API_SERVER_ADDRESS, else RAY_ADDRESS): {e}") from e
    ways = f"Follow it: ray job logs -f {job_id}\nStop it:   ray job stop {job_id}"
    _say(f"Submitted {job_id}: {entrypoint}\n{ways}")
    try:
        asyncio.run(_follow(client, job_id))
    except KeyboardInterrupt:
        _say(f"{job_id} goes on without this command.\n{ways}")
        return 130
    details = client.get_job_info(job_id)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    reason = details.message if details.driver_exit_code is None else ""  # else the log has it
    _say(f"{job_id} {details.status.lower()}. {reason}\nRun the same command again to go on where it stopped.")
    return details.driver_exit_code or 1


async def _follow(client: Any, job_id: str) -> None:
    """Print the job's log until the job ends. A connection that breaks is made again, and what was printed is left out."""
    from aiohttp import ClientError
    from requests import RequestException

    num_printed = 0
    is_broken = False
    while True:
        # Ray sends the log from its beginning on every connection, so what was printed is counted, in characters, and left out.
        num_read = 0
        try:
            async for text in client.tail_job_logs(job_id):
                num_read += len(text)
                is_broken = False
                if num_read > num_printed:
                    typer.echo(text[num_printed - num_read :], nl=False)
                    num_printed = num_read
            if client.get_job_status(job_id).is_terminal():
                return
        except (ClientError, RequestException, ConnectionError, RuntimeError) as e:
            if not is_broken:
                _say(f"The connection broke, the job goes on; trying again until Ctrl-C. {e}")
            is_broken = True
        await asyncio.sleep(RECONNECT_S)


def _runtime_env(path: str) -> dict[str, Any]:
    try:
        found = load_yaml(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise ConfigError(f"--runtime-env {path} cannot be read: {e}") from e
    if not isinstance(found, dict):
        raise ConfigError(f"--runtime-env {path} must be a mapping of Ray's runtime environment, such as `pip: [...]`.")
    # Last, whatever the file says: the entry point names files of this repository.
    return {**found, "working_dir": str(REPOSITORY)}


def _option(name: str, value: Any) -> list[str]:
    return [] if value is None else [name, str(value)]


def _say(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    typer.run(main)
