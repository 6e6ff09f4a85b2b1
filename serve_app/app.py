"""The whole application: ingress > router, weak LLM, strong LLM. `serve run serve_app.app:build_app config=FILE`.

Runs in the driver, which only describes the application; models and router are loaded on their replicas.
"""

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.llm._internal.serve.core.configs.openai_api_models import to_model_metadata
from ray.serve.deployment import Application
from ray.serve.llm import build_llm_deployment
from ray.serve.llm.ingress import make_fastapi_ingress

from firewall_ray.artifacts import ArtifactStore
from firewall_ray.config import RunConfig, load_config
from firewall_ray.errors import ConfigError
from firewall_ray.router.card import load_card
from serve_app.ingress import ENDPOINTS, FirewallIngress, new_fastapi_app
from serve_app.llm_deployments import llm_config
from serve_app.router_deployment import router_deployment


def build_app(args: Mapping[str, Any]) -> Application:
    """The application of a run. args: `config`, the run's YAML file, and optionally `root`, above the config's own.

    Raises ConfigError, ArtifactMissing or ModelError where the run's config, router or models cannot be served.
    """
    unknown = sorted(set(args) - {"config", "root"})
    if unknown or "config" not in args:
        raise ConfigError(f"build_app takes config=FILE and root=FOLDER_OR_URI; given were {sorted(args)}.")
    return compose(load_config(args["config"], root=args.get("root")))


def compose(config: RunConfig) -> Application:
    """As `build_app`, of a config that is loaded already."""
    store = ArtifactStore(config.root)
    name = config.serving.router or config.router.designs[0]
    card = load_card(store.router(name).require())
    trained_for = (card.weak.key, card.strong.key)
    if trained_for != (config.pair.weak, config.pair.strong):
        raise ConfigError(
            f"pair is {config.pair.weak} and {config.pair.strong}, but the router {name} was trained for "
            f"{' and '.join(trained_for)}. Change `pair`, or train a router for it: python jobs/train_router.py --config FILE"
        )
    llms = [llm_config(config, key) for key in trained_for]
    ingress = make_fastapi_ingress(FirewallIngress, endpoint_map=ENDPOINTS, app=new_fastapi_app())
    deployment = serve.deployment(ingress, name="Ingress", **FirewallIngress.get_deployment_options(llms))
    return deployment.bind(
        llm_deployments={llm.model_id: build_llm_deployment(llm) for llm in llms},
        model_cards={llm.model_id: to_model_metadata(llm.model_id, llm) for llm in llms},
        router=router_deployment(store, name, config.scoring, config.evaluation.seed),
        pair=config.pair,
        serving=config.serving,
    )
