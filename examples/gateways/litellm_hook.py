"""A hook of LiteLLM's proxy that asks firewall-ray which model is to answer. Runs in the proxy; litellm_config.yaml names it.

Written for litellm 1.110. Environment: FIREWALL_URL (http://firewall.internal:8000), and FIREWALL_KEY where it wants keys.
"""

import logging
import os
from typing import Any

import httpx
from litellm.integrations.custom_logger import CustomLogger

NAME = "firewall"  # firewall, and firewall-0.3 for a strong fraction of one's own
FAIL_OPEN = "weak"  # model of the proxy's own list that answers where nobody decides
TIMEOUT_S = 0.6  # a little more than serving.router_timeout_s
CALL_TYPES = ("completion", "acompletion", "text_completion", "atext_completion")

logger = logging.getLogger("firewall")


class FirewallHook(CustomLogger):
    """Puts the model that firewall-ray chose into the place of the name that the client asked for."""

    def __init__(self, client: httpx.AsyncClient | None = None) -> None:
        super().__init__()
        self._client = client

    async def async_pre_call_hook(self, user_api_key_dict: Any, cache: Any, data: dict[str, Any], call_type: str) -> dict[str, Any]:
        """data: the client's request. Other models' requests, and those for no text, go on as they are."""
        asked = data.get("model")
        if call_type not in CALL_TYPES or not isinstance(asked, str) or (asked != NAME and not asked.startswith(f"{NAME}-")):
            return data
        body = {field: data[field] for field in ("model", "messages", "prompt") if data.get(field) is not None}
        try:
            response = await self._client_here().post("/v1/route", json=body)
            response.raise_for_status()
            # Where `prompt` is a list, one answer for each; of them one model answers all.
            decisions = response.json().get("decisions") or [response.json()]
            decisive = next((each for each in decisions if each["route"] == "strong"), decisions[0])
            data["model"] = decisive["model"]
        except Exception as e:  # whatever befell it, a model can still answer
            logger.warning("firewall-ray did not decide (%s); %s answers.", type(e).__name__, FAIL_OPEN)
            data["model"] = FAIL_OPEN
        return data

    def _client_here(self) -> httpx.AsyncClient:
        """Made at the first request, in the proxy's own event loop."""
        if self._client is None:
            key = os.environ.get("FIREWALL_KEY")
            headers = {} if key is None else {"authorization": f"Bearer {key}"}
            self._client = httpx.AsyncClient(base_url=os.environ["FIREWALL_URL"], headers=headers, timeout=TIMEOUT_S)
        return self._client


hook = FirewallHook()
