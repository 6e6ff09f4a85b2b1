"""The router in service, as Serve's config file says it, and the same file with another one.

`user_config` of the deployment `Router` changes while the application runs (docs/serving.md); everything else in the file stays
as it is. Comments are lost.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import yaml

from firewall_ray.config.run import RunConfig

IMPORT_PATH = "serve_app.app:build_app"
DEPLOYMENT = "Router"


class ServeFile:
    """content: a config file of Serve with exactly one application of ours, checked (`serve_app.deploy.read_serve_config`)."""

    def __init__(self, content: Mapping[str, Any], config: RunConfig) -> None:
        self.content = content
        self._config = config
        (application,) = applications(content)
        # All of them optional in Serve's file: what is not there is as the application was built.
        deployments = application.get("deployments") or []
        self._router: Mapping[str, Any] = next((each for each in deployments if each["name"] == DEPLOYMENT), {"name": DEPLOYMENT})
        self._others = [each for each in deployments if each["name"] != DEPLOYMENT]
        self._user_config: Mapping[str, Any] = self._router.get("user_config") or {}

    @property
    def router(self) -> str:
        """The one in service: that of `user_config`, else the one that the run's application begins with."""
        return str(self._user_config.get("router") or self._config.served_router)

    def with_router(self, router: str, version: str) -> str:
        """The file's text with this router, at the strong fraction in force."""
        content = deepcopy(dict(self.content))
        # As an operator set it last, so that another router does not bring back another share.
        fraction = self._user_config.get("strong_fraction", self._config.serving.strong_fraction)
        user_config = {"router": router, "version": version, "strong_fraction": fraction}
        (application,) = applications(content)
        application["deployments"] = deepcopy([*self._others, {**self._router, "user_config": user_config}])
        # In the file's own order, so that a diff shows the router alone.
        return yaml.safe_dump(content, sort_keys=False)


def applications(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those of a config file of Serve that are ours."""
    return [application for application in content["applications"] if application["import_path"] == IMPORT_PATH]
