"""A finished run -> its application on the cluster this runs on: python -m serve_app.deploy --config FILE. Runs in a job's driver.

`serve deploy`, with what the file cannot know filled in: the run (config, root, overrides), the code that this job was submitted
with, and the version of the router, so that replicas that run already load one that was trained anew. Nothing restarts where
nothing has changed.
"""

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from firewall_ray.cli import ConfigOption, RootOption, SetOption, job
from firewall_ray.cluster.connect import submitted_job
from firewall_ray.cluster.display import console
from firewall_ray.config.run import RunConfig
from firewall_ray.config.serve_file import DEPLOYMENT, IMPORT_PATH, applications
from firewall_ray.config.strict_yaml import load_yaml
from firewall_ray.errors import ConfigError, SystemFailure
from firewall_ray.router.card import load_card
from firewall_ray.store.layout import ArtifactStore
from serve_app.__main__ import curl_line

ServeConfigOption = Annotated[str, typer.Option("--serve-config", help="Ray Serve's config file with the application.")]

SERVE_CONFIG = "serve_app/serve_config.yaml"
POLL_S = 2.0

logger = logging.getLogger("firewall_ray")


def main(
    config: ConfigOption, root: RootOption = None, set_: SetOption = None, serve_config: ServeConfigOption = SERVE_CONFIG
) -> None:
    """Deploy the application of a run whose router is trained, and wait until it runs.

    The file's proxies, ports, names and deployments hold; `args` and the router are this run's. The cluster is the one that the
    job was submitted to, or RAY_API_SERVER_ADDRESS. Stopping it leaves Serve deploying: `serve status`.
    """
    with job("deploy", config, root, set_, needs_ray=False, reads=["routers"], writes=[]) as context:
        args = {"config": config, "root": context.config.root, **({"set": set_} if set_ else {})}
        wanted = fill_in(read_serve_config(serve_config), args, context.config, context.store)
        (application,) = applications(wanted)
        client = _client()
        client.deploy_applications(wanted)
        _wait_until_running(client, application["name"])
        context.report({"stage": "deploy", "application": application["name"], "router": context.config.served_router})
        http = wanted.get("http_options", {})
        line = curl_line(http.get("host", "127.0.0.1"), http.get("port", 8000))
        console.print(f"deploy: up. On a node of the cluster:\n{line}", markup=False, highlight=False, soft_wrap=True)


def read_serve_config(path: str) -> dict[str, Any]:
    """Serve's config file, checked by Serve's own schema. Raises ConfigError; also where it is not for this application."""
    from ray.serve.schema import ServeDeploySchema  # Seconds to import: --help and a wrong config answer at once.

    try:
        found = load_yaml(Path(path).read_text(encoding="utf-8"))
        ServeDeploySchema.model_validate(found)
    except OSError as e:
        raise ConfigError(f"--serve-config {path}: {e.strerror}. The shipped one is {SERVE_CONFIG}.") from e
    except ValidationError as e:  # whose own text repeats the input: a runtime_env's variables may hold keys
        wrong = "; ".join(f"{'.'.join(map(str, error['loc']))}: {error['msg']}" for error in e.errors())
        raise ConfigError(f"--serve-config {path} is not a config file of Ray Serve: {wrong}") from None
    except ValueError as e:
        raise ConfigError(f"--serve-config {path} is not YAML that can be used: {e}") from e
    if len(applications(found)) != 1:
        raise ConfigError(f"--serve-config {path}: exactly one application must have import_path: {IMPORT_PATH}.")
    return dict(found)


def fill_in(serve_config: Mapping[str, Any], args: Mapping[str, Any], config: RunConfig, store: ArtifactStore) -> dict[str, Any]:
    """The file with this run put in. A `runtime_env.working_dir` or a `user_config` of the router that it has stays.

    Raises ArtifactMissing or ModelError where the run has no router to serve.
    """
    card = load_card(store.router(config.served_router).require())
    (application,) = applications(serve_config)
    working_dir = submitted_job().get("runtime_env", {}).get("working_dir")
    if working_dir is None:  # Not a submitted job: replicas run in another folder than this process.
        args = {**args, "config": os.path.abspath(args["config"])}
    else:
        application["runtime_env"] = {"working_dir": working_dir, **application.get("runtime_env", {})}
    application["args"] = dict(args)
    deployments = application.setdefault("deployments", [])
    router = next((deployment for deployment in deployments if deployment["name"] == DEPLOYMENT), None)
    if router is None:
        deployments.append(router := {"name": DEPLOYMENT})
    fraction = config.serving.strong_fraction
    router.setdefault("user_config", {"router": config.served_router, "version": card.version, "strong_fraction": fraction})
    return dict(serve_config)


def _client() -> Any:
    """Ray's client of the cluster's dashboard, which is what `serve deploy` talks to."""
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient
    from ray.dashboard.utils import get_address_for_submission_client

    try:
        return ServeSubmissionClient(get_address_for_submission_client(None))
    except (ConnectionError, RuntimeError, ValueError) as e:
        raise SystemFailure(
            f"No Ray cluster to deploy to: {e} Submit this command as a job (`ray job submit`), or set RAY_API_SERVER_ADDRESS."
        ) from e


def _wait_until_running(client: Any, name: str) -> None:
    """Says how far each deployment is, whenever that changes."""
    said = ""
    while True:  # how long a model loads nobody knows; who does not want to wait stops the job
        found = client.get_serve_details()["applications"].get(name, {"status": "NOT_STARTED", "deployments": {}})
        if found["status"] == "RUNNING":
            return
        if found["status"] == "DEPLOY_FAILED":
            raise SystemFailure(f"Serve could not deploy {name}: {found['message']}")
        words = ", ".join(
            f"{deployment['name']} {sum(replica['state'] == 'RUNNING' for replica in deployment['replicas'])} of "
            f"{deployment['target_num_replicas']}"
            for deployment in found["deployments"].values()
        )
        if words != said:
            logger.info("deploy: %s is %s. Replicas: %s", name, found["status"], words or "none yet")
            said = words
        time.sleep(POLL_S)


if __name__ == "__main__":
    typer.run(main)
