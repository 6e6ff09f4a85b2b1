"""What a key may ask for, and until when; and the names that clients ask by."""

import asyncio
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from callers import bearer, error_of, get
from gateway_fakes import Fakes
from pydantic import ValidationError
from typer.testing import CliRunner

from firewall_ray.config.callers import ApiKeyConfig
from firewall_ray.config.run import load_config
from firewall_ray.config.serving import ServingConfig
from firewall_ray.errors import ConfigError
from serve_app import api_keys
from serve_app.api_keys import make_key

ALIASES = {"gpt-4o": "firewall", "gpt-4o-mini": "firewall-0.1", "org/my-model": "small"}
EVERYTHING = ["firewall", "firewall-0.3", "small", "large", *ALIASES]
HEX = "0" * 64


def keyed(serving: dict[str, Any] | None = None, **rights: Any) -> tuple[Fakes, dict[str, str]]:
    """A gateway with one key, and the headers of a request with it."""
    key, config = make_key("ann", **rights)
    return Fakes(api_keys=[config.model_dump()], aliases=ALIASES, **(serving or {})), bearer(key)


# Models --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "allowed", "listed"),
    [
        (None, EVERYTHING, ["firewall", "small", "large", *ALIASES]),
        (["firewall"], ["firewall", "firewall-0.3", "gpt-4o", "gpt-4o-mini"], ["firewall", "gpt-4o", "gpt-4o-mini"]),
        (["small"], ["small", "org/my-model"], ["small", "org/my-model"]),
        (["gpt-4o"], ["gpt-4o"], ["gpt-4o"]),
        (["firewall-0.3", "large"], ["firewall-0.3", "large"], ["large", "firewall-0.3"]),
    ],
)
def test_a_key_may_ask_for_its_models_and_sees_no_others(models: list[str] | None, allowed: list[str], listed: list[str]) -> None:
    fakes, headers = keyed(models=models)
    statuses = {name: fakes.chat(model=name, headers=headers).status_code for name in EVERYTHING}
    assert statuses == {name: 200 if name in allowed else 403 for name in EVERYTHING}
    assert [each["id"] for each in get(fakes, "/v1/models", headers=headers).json()["data"]] == listed
    for name in EVERYTHING:
        routed = fakes.post("/v1/route", {"model": name, "prompt": "Why?"}, headers)
        assert [routed.status_code, get(fakes, f"/v1/models/{name}", headers=headers).status_code] == [statuses[name]] * 2


def test_a_refusal_says_what_the_key_may_ask_for_and_nothing_was_asked() -> None:
    fakes, headers = keyed(models=["firewall"])
    for model, status, code in [("large", 403, "model_not_allowed"), ("gpt-5", 404, "model_not_found")]:
        response = fakes.chat(model=model, headers=headers)
        error = error_of(response)
        assert (response.status_code, error["code"], error["param"]) == (status, code, "model")
        assert "firewall" in error["message"]
        assert "small" not in error["message"]
    assert error_of(fakes.chat(model="large", headers=headers))["type"] == "permission_error"
    assert fakes.router.calls == fakes.weak.bodies == fakes.strong.bodies == []


def test_the_official_client_raises_what_it_raises_for_openai() -> None:
    fakes, headers = keyed(models=["firewall"])

    async def run() -> str | None:
        async with fakes.client() as http_client:
            key = headers["authorization"].removeprefix("Bearer ")
            client = openai.AsyncOpenAI(base_url="http://gateway/v1", api_key=key, max_retries=0, http_client=http_client)
            with pytest.raises(openai.PermissionDeniedError) as refused:
                await client.completions.create(model="large", prompt="Why?")
            return refused.value.code

    assert asyncio.run(run()) == "model_not_allowed"


# Strong fractions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "header", "status"),
    [
        *((("firewall", None, 200), ("firewall-0.2", None, 200), ("firewall-0.5", None, 200), ("small", None, 200))),
        *((("firewall-0.19", None, 403), ("firewall-0.51", None, 403), ("firewall-1", None, 403), ("firewall-0", None, 403))),
        *((("firewall", "0.3", 200), ("firewall", "0.6", 403), ("gpt-4o", "0.6", 403), ("gpt-4o-mini", None, 403))),
    ],
)
def test_a_key_may_ask_for_the_fractions_in_its_range(model: str, header: str | None, status: int) -> None:
    """Its ends included; `firewall` alone takes what is in force."""
    fakes, headers = keyed(fractions=[0.2, 0.5])
    response = fakes.chat(model=model, headers=headers | ({} if header is None else {"x-firewall-strong-fraction": header}))
    assert response.status_code == status
    if status == 403:
        error = error_of(response)
        assert error["code"] == "fraction_not_allowed"
        assert error["param"] == ("model" if header is None else "x-firewall-strong-fraction")
        assert "0.2 to 0.5" in error["message"]


# An end --------------------------------------------------------------------------------------------------------------


def test_a_key_is_good_until_its_end_and_then_a_401_says_so() -> None:
    now = datetime.now(UTC)
    for expires, status in [(now + timedelta(seconds=30), 200), (now - timedelta(seconds=1), 401)]:
        fakes, headers = keyed(expires=expires)
        response = fakes.chat(headers=headers)
        assert response.status_code == status
    assert error_of(response)["code"] == "expired_api_key"
    assert f"{now - timedelta(seconds=1):%Y-%m-%dT%H:%M:%SZ}" in error_of(response)["message"]
    assert response.headers["www-authenticate"] == "Bearer"
    assert fakes.refused == [401]


def test_the_last_day_is_a_whole_one() -> None:
    today = datetime.now(UTC).date()
    for expires, status in [(today, 200), (today - timedelta(days=1), 401)]:
        fakes, headers = keyed(expires=expires)
        assert fakes.chat(headers=headers).status_code in (status, 401)  # 401 where midnight came meanwhile
    assert fakes.chat(headers=headers).status_code == 401


@pytest.mark.parametrize(
    ("said", "end"),
    [
        ("2026-12-31", "2027-01-01T00:00:00+00:00"),
        (date(2026, 12, 31), "2027-01-01T00:00:00+00:00"),
        ("2026-12-31T00:00:00Z", "2026-12-31T00:00:00+00:00"),
        ("2026-12-31T18:30:00", "2026-12-31T18:30:00+00:00"),
        ("2026-12-31T18:30:00+02:00", "2026-12-31T16:30:00+00:00"),
        (datetime(2026, 12, 31), "2026-12-31T00:00:00+00:00"),
    ],
)
def test_an_end_is_read_as_it_is_said(said: object, end: str) -> None:
    expires_at = ApiKeyConfig.model_validate({"name": "ann", "sha256": HEX, "expires": said}).expires_at
    assert expires_at is not None
    assert expires_at.astimezone(UTC).isoformat() == end


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("expires", value) for value in (20261231, 1.5, True, "soon", "2026-13-01", "", [])),
        *(("fractions", value) for value in ([0.5, 0.2], [0.2], [0, 2], [-1, 1], "0.3", [0.1, 0.2, 0.3])),
        *(("models", value) for value in ([], "firewall")),
        *(("requests_per_minute", value) for value in (0, -1, 1.5, "many")),
        *(("tokens_per_minute", value) for value in (0, -1)),
        ("request_per_minute", 1),
    ],
)
def test_rights_that_make_no_sense_are_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError, match=field):
        ServingConfig.model_validate({"api_keys": [{"name": "ann", "sha256": HEX, field: value}]})


def test_two_keys_of_a_name_have_the_same_rights_but_for_their_ends() -> None:
    old = {"name": "ann", "sha256": HEX, "models": ["firewall"], "expires": "2026-12-31"}
    new = {"name": "ann", "sha256": "1" * 64, "models": ["firewall"]}
    assert len(ServingConfig.model_validate({"api_keys": [old, new]}).keys) == 2
    with pytest.raises(ValidationError, match="two keys have the name ann"):
        ServingConfig.model_validate({"api_keys": [old, {**new, "requests_per_minute": 5}]})


def test_the_command_prints_the_rights_too() -> None:
    import typer

    app = typer.Typer()
    app.command()(api_keys.main)
    rights = ["--models", "firewall,small", "--fractions", "0.1,0.5", "--requests-per-minute", "60", "--tokens-per-minute", "5000"]
    output = CliRunner().invoke(app, ["ann", *rights, "--expires", "2026-12-31"]).output
    (key,) = ServingConfig.model_validate(yaml.safe_load(output[output.index("serving:") :])["serving"]).keys
    said = {name: value for name, value in key.model_dump().items() if name != "sha256"}
    assert said == {
        "name": "ann",
        "models": ["firewall", "small"],
        "fractions": (0.1, 0.5),
        "requests_per_minute": 60,
        "tokens_per_minute": 5000,
        "expires": date(2026, 12, 31),
    }
    for wrong in (["--fractions", "0.3"], ["--fractions", "a,b"], ["--expires", "soon"], ["--requests-per-minute", "0"]):
        result = CliRunner().invoke(app, ["ann", *wrong])
        assert (result.exit_code, "fw-" in result.output) == (2, False)


# Aliases -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alias", "model", "reason", "fraction"),
    [("gpt-4o", "small", "score", 0.3), ("gpt-4o-mini", "small", "score", 0.1), ("org/my-model", "small", "requested", None)],
)
def test_an_alias_is_asked_as_what_it_stands_for(alias: str, model: str, reason: str, fraction: float | None) -> None:
    fakes = Fakes(aliases=ALIASES)
    response = fakes.chat(model=alias)
    assert (response.status_code, response.json()["model"], response.headers["x-firewall-reason"]) == (200, model, reason)
    decision = fakes.recorder.exchanges[0].decision
    assert decision is not None
    assert decision.strong_fraction == fraction
    card = get(fakes, f"/v1/models/{alias}").json()
    assert (card["id"], card["object"]) == (alias, "model")


def test_aliases_are_listed_and_named_where_a_model_is_not_there() -> None:
    fakes = Fakes(aliases=ALIASES)
    assert [each["id"] for each in get(fakes, "/v1/models").json()["data"]] == ["firewall", "small", "large", *ALIASES]
    assert all(alias in error_of(fakes.chat(model="gpt-5"))["message"] for alias in ALIASES)


def config_with(tmp_path: Path, **serving: Any) -> None:
    models = {key: {"path": "x"} for key in ("weak", "strong", "other")}
    raw = {"root": str(tmp_path), "queries": {"tasks": {"tiny_world": {}}}, "models": models, "serving": serving}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    load_config(path)


@pytest.mark.parametrize(
    ("aliases", "problem"),
    [
        ({"gpt-4o": "other"}, r"aliases\.gpt-4o stands for 'other', which is not there.*weak, strong"),  # a model of no pair
        ({"a": "firewall-1.5"}, r"aliases\.a stands for 'firewall-1\.5'"),
        ({"a": "b", "b": "weak"}, r"aliases\.a stands for 'b'"),
        ({"weak": "strong"}, r"aliases\.weak: that is a model's own name"),
        ({"firewall": "weak"}, r"aliases\.firewall: the router answers"),
        ({"firewall-0.5": "weak"}, r"aliases\.firewall-0\.5: the router answers"),
        ({"a b": "weak"}, r"aliases"),
    ],
)
def test_an_alias_that_cannot_be_one_is_refused_when_the_config_is_loaded(
    tmp_path: Path, aliases: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        config_with(tmp_path, aliases=aliases)


def test_a_key_cannot_have_a_right_to_what_is_not_there(tmp_path: Path) -> None:
    key = {"name": "ann", "sha256": HEX}
    config_with(tmp_path, aliases={"gpt-4o": "firewall"}, api_keys=[{**key, "models": ["gpt-4o", "firewall-0.2", "strong"]}])
    with pytest.raises(ConfigError, match="ann may ask for 'gpt-5', which is not there") as refused:
        config_with(tmp_path, api_keys=[{**key, "models": ["gpt-5"]}])
    assert HEX not in str(refused.value)
