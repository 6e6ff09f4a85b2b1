"""/v1/route for gateways that there are already: what they read of it, and the examples that do."""

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import yaml
from callers import ALICE, KEYS, bearer
from gateway_fakes import FakeRouter, Fakes

EXAMPLES = Path("examples/gateways")
HARD = "Prove it."
CHAT = {"model": "firewall", "messages": [{"role": "user", "content": HARD}], "stream": True, "max_tokens": 5}


def fakes(**serving: Any) -> Fakes:
    return Fakes(FakeRouter({HARD: 0.125}), **serving)


# The endpoint --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/route", "/v1/route/", "/v1/route/v1/chat/completions", "/v1/route/v1/chat/completions?x=1"])
def test_one_decision_is_in_the_headers_too_wherever_the_path_goes_on(path: str) -> None:
    served = fakes()
    response = served.post(path, CHAT)
    assert response.json()["route"] == "strong"
    assert {name: value for name, value in response.headers.items() if name.startswith("x-firewall")} == {
        "x-firewall-route": "strong",
        "x-firewall-model": "large",
        "x-firewall-reason": "score",
        "x-firewall-score": "0.125",
        "x-firewall-threshold": "0.3",
        "x-firewall-router": "v1",
        "x-firewall-truncated": "false",
        "x-firewall-decided": "strong",
    }
    assert served.weak.bodies == served.strong.bodies == []


def test_of_a_batch_no_header_speaks_for_all() -> None:
    response = fakes().post("/v1/route", {"prompt": [HARD, "easy"]})
    assert not [name for name in response.headers if name.startswith("x-firewall")]


def test_a_path_behind_the_endpoint_needs_a_key_as_well() -> None:
    served = fakes(api_keys=KEYS)
    assert served.post("/v1/route/health", CHAT).status_code == 401
    assert served.post("/v1/route/health", CHAT, bearer(ALICE)).status_code == 200


# Envoy ---------------------------------------------------------------------------------------------------------------


def envoy() -> tuple[dict[str, Any], dict[str, Any]]:
    """The connection manager, and its ext_authz."""
    (listener,) = yaml.safe_load((EXAMPLES / "envoy.yaml").read_text())["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    (ext_authz,) = (each["typed_config"] for each in manager["http_filters"] if each["name"].endswith("ext_authz"))
    return manager, ext_authz


def allows(patterns: dict[str, Any], name: str) -> bool:
    return any(name == each.get("exact") or ("prefix" in each and name.startswith(each["prefix"])) for each in patterns["patterns"])


def test_what_envoy_asks_as_its_file_says_is_answered_with_the_headers_that_it_routes_by() -> None:
    manager, ext_authz = envoy()
    service = ext_authz["http_service"]
    sent = {
        each["key"]: each["value"].replace("FIREWALL_KEY", ALICE) for each in service["authorization_request"]["headers_to_add"]
    }
    served = fakes(api_keys=KEYS)
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    for text, cluster in [(HARD, "strong"), ("easy", "weak")]:
        body = {"model": "firewall", "messages": [{"role": "user", "content": text}]}
        answer = served.post(f"{service['path_prefix']}/v1/chat/completions", body, sent)
        assert answer.status_code == 200
        allowed = service["authorization_response"]["allowed_upstream_headers"]
        upstream = {name: value for name, value in answer.headers.items() if allows(allowed, name)}
        assert upstream["x-firewall-route"] == cluster
        # The first route that fits, as Envoy takes it.
        assert next(each["route"]["cluster"] for each in routes if fits(each["match"], "/v1/chat/completions", upstream)) == cluster


def fits(match: dict[str, Any], path: str, headers: dict[str, str]) -> bool:
    wanted = {each["name"]: each["string_match"]["exact"] for each in match.get("headers", [])}
    return match.get("path", path) == path and path.startswith(match.get("prefix", "/")) and wanted.items() <= headers.items()


def test_envoys_file_names_only_what_it_defines_and_asks_only_about_prompts() -> None:
    manager, ext_authz = envoy()
    clusters = {each["name"] for each in yaml.safe_load((EXAMPLES / "envoy.yaml").read_text())["static_resources"]["clusters"]}
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    assert {each["route"]["cluster"] for each in routes} | {ext_authz["http_service"]["server_uri"]["cluster"]} == clusters
    # Or the header would come too late for the route, and a body of more than one piece be decided by its first.
    assert ext_authz["clear_route_cache"] is True
    assert ext_authz["with_request_body"]["allow_partial_message"] is False
    assert ext_authz["with_request_body"]["max_request_bytes"] == Fakes().serving.max_body_mib * 2**20
    unasked = [each["match"] for each in routes if "typed_per_filter_config" in each]
    assert unasked == [{"prefix": "/"}]
    names = [each["name"].rpartition(".")[2] for each in manager["http_filters"]]
    assert names == ["header_mutation", "ext_authz", "router"]  # a client's own header is gone before


# LiteLLM -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook_module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, with LiteLLM's base class replaced by an empty one: litellm is no dependency."""
    custom_logger = ModuleType("litellm.integrations.custom_logger")
    custom_logger.CustomLogger = object  # type: ignore[attr-defined]
    for name, module in {
        "litellm": ModuleType("litellm"),
        "litellm.integrations": ModuleType("litellm.integrations"),
        "litellm.integrations.custom_logger": custom_logger,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    spec = importlib.util.spec_from_file_location("litellm_hook", EXAMPLES / "litellm_hook.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hooked(module: ModuleType, served: Fakes, data: dict[str, Any], call_type: str = "acompletion") -> dict[str, Any]:
    async def run() -> dict[str, Any]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(served.app), base_url="http://gateway") as client:
            result: dict[str, Any] = await module.FirewallHook(client).async_pre_call_hook(None, None, data, call_type)
            return result

    return asyncio.run(run())


@pytest.mark.parametrize(("text", "model", "chosen"), [(HARD, "firewall", "large"), ("easy", "firewall", "small")])
def test_litellms_hook_puts_the_chosen_model_into_the_request_and_leaves_the_rest(
    hook_module: ModuleType, text: str, model: str, chosen: str
) -> None:
    data = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0.5, "metadata": {"user": object()}}
    before = dict(data)
    assert hooked(hook_module, fakes(), data) == {**before, "model": chosen}


def test_litellms_hook_asks_for_the_fraction_in_the_name_and_for_several_prompts_once(hook_module: ModuleType) -> None:
    served = fakes()
    assert hooked(hook_module, served, {"model": "firewall-0.1", "prompt": HARD}, "atext_completion")["model"] == "small"
    assert hooked(hook_module, served, {"model": "firewall", "prompt": ["easy", HARD]}, "atext_completion")["model"] == "large"
    assert [(texts, fraction) for texts, fraction, _ in served.router.calls] == [([HARD], 0.1), (["easy", HARD], None)]


@pytest.mark.parametrize(
    ("data", "call_type"),
    [({"model": "gpt-4", "messages": []}, "acompletion"), ({"model": "firewall", "input": "a"}, "aembedding"), ({}, "acompletion")],
)
def test_litellms_hook_leaves_alone_what_is_not_its_business(hook_module: ModuleType, data: dict[str, Any], call_type: str) -> None:
    served = fakes()
    assert hooked(hook_module, served, dict(data), call_type) == data
    assert served.router.calls == []


def test_litellms_hook_sends_to_the_weak_model_what_nobody_decided(hook_module: ModuleType) -> None:
    data = {"model": "firewall", "messages": [{"role": "user", "content": HARD}]}
    assert hooked(hook_module, fakes(api_keys=KEYS), dict(data))["model"] == "weak"  # no key: 401


def test_litellms_file_names_the_hook_and_models_that_there_are(hook_module: ModuleType) -> None:
    config = yaml.safe_load((EXAMPLES / "litellm_config.yaml").read_text())
    module, _, name = config["litellm_settings"]["callbacks"].partition(".")
    assert module == "litellm_hook"
    assert isinstance(getattr(hook_module, name), hook_module.FirewallHook)
    assert {"weak", "strong", "firewall", hook_module.FAIL_OPEN} <= {each["model_name"] for each in config["model_list"]}
