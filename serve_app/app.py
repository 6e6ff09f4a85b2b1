"""The whole application: ingress > router, weak LLM, strong LLM. `serve run serve_app.app:build_app config=FILE`.

Runs in the driver, which only describes the application; models and router are loaded on their replicas.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.deployment import Application
from ray.serve.llm import build_llm_deployment

from firewall_ray.config.models import OpenAIModelConfig
from firewall_ray.config.money import PriceConfig
from firewall_ray.config.names import FIREWALL, is_reserved
from firewall_ray.config.run import RunConfig, load_config
from firewall_ray.config.serving import Route
from firewall_ray.engines.prompt_choice import prompt_format
from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.errors import ConfigError
from firewall_ray.router.card import load_card
from firewall_ray.router.pair import check_models, configured_model
from firewall_ray.store.layout import ArtifactStore
from serve_app.http.ingress import Ingress
from serve_app.models.chats import as_sampled
from serve_app.models.deployment import llm_config
from serve_app.models.replica import ModelServer
from serve_app.routing.replica import router_deployment
from serve_app.serve_settings import replica_environment
from serve_app.shared.replica import shared_deployment

# The ingress refuses what is too much itself, in OpenAI's shape (`serving.max_in_flight`), before Serve would.
SERVE_MAX_ONGOING = 10_000
# After an ingress replica's last answer: what it wrote down goes to storage, which may be slow just then.
CLOSING_S = 60.0

logger = logging.getLogger("firewall_ray")


def build_app(args: Mapping[str, Any]) -> Application:
    """The application of a run. args: `config`, the run's YAML file, and optionally `root`, above the config's own, and `set`, a
    list of key.path=value.

    Raises ConfigError, ArtifactMissing or ModelError where the run's config, router or models cannot be served.
    """
    unknown = sorted(set(args) - {"config", "root", "set"})
    if unknown or "config" not in args:
        raise ConfigError(f"build_app takes config=FILE, root=FOLDER_OR_URI and set=[key.path=value]; given were {sorted(args)}.")
    return compose(load_config(args["config"], args.get("set", ()), args.get("root")))


def compose(config: RunConfig) -> Application:
    """As `build_app`, of a config that is loaded already."""
    serving = config.serving
    if serving.api_keys is None:
        raise ConfigError(
            "serving.api_keys: say who may call. Make a key with `python -m serve_app.api_keys NAME` and list what it prints, "
            "or let everybody in who reaches the port: `api_keys: disabled`."
        )
    store = ArtifactStore(config.root)
    name = config.served_router
    card = load_card(store.router(name).require())
    pair = (config.pair.weak, config.pair.strong)
    # A score says whether the weak model of its own pair is enough; before another pair it says nothing.
    if (card.weak.key, card.strong.key) != pair:
        raise ConfigError(
            f"pair is {' and '.join(pair)}, but the router {name} was trained for {card.weak.key} and {card.strong.key}. "
            "Change `pair`, or train a router for it: python jobs/train_router.py --config FILE"
        )
    ids: dict[Route, str] = {"weak": pair[0], "strong": pair[1]}
    # `auto` is what it was when the model was sampled, whatever its tokenizer has by now.
    trained = (card.weak, card.strong)
    prompts = {model.key: prompt_format(model.key, config.models[model.key], model.prompt) for model in trained}
    weak, strong = (configured_model(key, config.models[key], prompts[key]) for key in pair)
    check_models(name, trained, (weak, strong), refuse=serving.other_models == "refuse")
    deployment = serve.deployment(
        # Without an app: each replica builds its own, once it has what it is bound to (Ingress.__serve_build_asgi_app__).
        serve.ingress()(Ingress),
        name="Ingress",
        max_ongoing_requests=SERVE_MAX_ONGOING,
        ray_actor_options={
            "num_cpus": 1,  # one event loop: more it cannot use
            "resources": serving.node_resources,
            "runtime_env": {"env_vars": replica_environment()},
        },
        autoscaling_config={
            "min_replicas": serving.ingress_replicas.min,
            "max_replicas": serving.ingress_replicas.max,
            "target_ongoing_requests": serving.max_in_flight / 2,  # another replica before this one has to refuse any
        },
        # A replica that is to go, in an upgrade or when fewer are needed, ends its answers first; then Serve kills it.
        graceful_shutdown_timeout_s=serving.longest_request_s + CLOSING_S,
        max_surge_percent=100,
    )
    return deployment.bind(
        router=router_deployment(config, store, name, (weak, strong)),
        ids=ids,
        models={route: _model(config, key, prompts[key], serving.prices.get(route)) for route, key in ids.items()},
        shared=shared_deployment(serving, store.spending()),
        serving=serving,
        decisions=store.decisions(),
        other_requests=store.other_requests(),
        spending=store.spending(),
    )


def _model(config: RunConfig, key: str, prompt: PromptFormat, price: PriceConfig | None) -> Application | OpenAIModelConfig:
    """A deployment of its own, or the server elsewhere that has it.

    Raises ConfigError for a key that the router answers to, and for a price that can't be one.
    """
    if is_reserved(key):
        raise ConfigError(f"models.{key}: clients reach the router as {FIREWALL} and {FIREWALL}-0.3; give the model another key.")
    model = config.models[key]
    if isinstance(model, OpenAIModelConfig):
        if price is not None and price.gpu_second is not None:
            raise ConfigError(f"models.{key} is elsewhere, where no GPU is timed: give its price by tokens, prompt and completion.")
        if not prompt.is_chat:
            words = (
                "models.%s was sampled with raw prompts; chats to it are put into its server's own chat template, if it has one."
            )
            logger.warning(words, key)
        return model
    arguments, chats = as_sampled(prompt, config.sampling)
    if price is not None and price.cached_prompt is not None:
        arguments |= {"enable_prompt_tokens_details": True}  # else vLLM says nothing of its cache
    served = llm_config(key, model, config.serving, arguments)
    bound = {"chats": chats, "stall_s": config.serving.engine_stall_s}
    return build_llm_deployment(served, deployment_cls=ModelServer, bind_kwargs=bound)
