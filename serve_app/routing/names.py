"""By which names clients may ask, each key for itself: the router, the models, and aliases of them. Runs on ingress replicas."""

from collections.abc import Mapping
from typing import Any

from firewall_ray.config.callers import ApiKeyConfig
from firewall_ray.config.names import FIREWALL, asks_router
from firewall_ray.config.serving import Route, ServingConfig
from serve_app.errors import RequestRefused
from serve_app.routing.request import FRACTION_HEADER, RoutingOptions, routing_options


class Names:
    """ids: of the pair. A key's `models` are names that it may ask for, or what those stand for."""

    def __init__(self, ids: Mapping[Route, str], serving: ServingConfig) -> None:
        self._ids = ids
        self._aliases = serving.aliases
        # Of those that have fewer rights than others.
        self._rights = {key.name: key for key in serving.keys if key.models is not None or key.fractions is not None}

    def options(self, model: Any, headers: Mapping[str, str], key_name: str | None) -> RoutingOptions:
        """As `routing_options`, of an alias what it stands for. Also raises RequestRefused where the key has no right to it."""
        meant = self._aliases.get(model, model) if self._aliases and isinstance(model, str) else model
        rights = self._rights.get(key_name) if key_name is not None else None
        if rights is None:
            return routing_options(meant, headers, self._ids, self.listed(None) if self._aliases else None)
        options = routing_options(meant, headers, self._ids, self.listed(key_name))
        if not _may_ask(rights, model, meant):
            message = f"This API key may not ask for {model[:100]!r}. It may ask for: {', '.join(self.listed(key_name))}."
            raise RequestRefused(403, message, code="model_not_allowed", param="model")
        if rights.fractions is not None and options.strong_fraction is not None:
            lowest, highest = rights.fractions
            if not lowest <= options.strong_fraction <= highest:
                message = f"This API key may ask for strong fractions from {lowest:g} to {highest:g}."
                param = FRACTION_HEADER if FRACTION_HEADER in headers else "model"
                raise RequestRefused(403, message, code="fraction_not_allowed", param=param)
        return options

    def listed(self, key_name: str | None) -> list[str]:
        """What /v1/models says that there is, to this key."""
        names = [FIREWALL, *self._ids.values(), *self._aliases]
        rights = self._rights.get(key_name) if key_name is not None else None
        if rights is None or rights.models is None:
            return names
        allowed = [name for name in names if _may_ask(rights, name, self._aliases.get(name, name))]
        return [*allowed, *(name for name in rights.models if name not in names)]  # a fraction of its own, such as firewall-0.3


def _may_ask(rights: ApiKeyConfig, name: str, meant: str) -> bool:
    models = rights.models
    return models is None or name in models or meant in models or (FIREWALL in models and asks_router(meant))
