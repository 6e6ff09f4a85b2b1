"""By which names the server may be asked, against pages elsewhere whose name is made to resolve here."""

from typing import Any

import pytest
from callers import ALICE, KEYS, bearer, error_of, get
from gateway_fakes import Fakes

from serve_app.http.hosts import host_is_allowed

LOCAL = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.:80",
    "page.localhost:8000",
    "127.0.0.1:8000",
    "127.0.0.2",
    "[::1]:8000",
    "10.0.0.5:80",
]
REBOUND = [
    "evil.example",
    "evil.example:8000",
    "127.0.0.1.evil.example",
    "localhost.evil.example",
    "evil@127.0.0.1",
    "",
    "a b",
    "x:port",
]


@pytest.mark.parametrize("host", [*LOCAL, *REBOUND])
def test_without_keys_and_names_only_local_names_and_addresses_are_let_in(host: str) -> None:
    """A page of that name has the same origin as this server, as its visitors' browsers see it."""
    fakes = Fakes(allowed_hosts=None)
    status = 200 if host in LOCAL else 403
    response = fakes.chat(headers={"host": host, "origin": f"http://{host}"})
    assert response.status_code == status
    assert len(fakes.weak.bodies) == (status == 200)
    assert get(fakes, "/stats", headers={"host": host}).status_code == status
    assert get(fakes, "/", headers={"host": host}).status_code == status
    if status == 403:
        assert error_of(response)["code"] == "host_not_allowed"
        assert "serving.allowed_hosts" in error_of(response)["message"]
        assert fakes.refused == [403] * 3


def test_probes_come_by_any_name() -> None:
    for path in ("/health", "/ready"):
        assert get(Fakes(allowed_hosts=None), path, headers={"host": "evil.example"}).status_code == 200


@pytest.mark.parametrize(
    ("serving", "allowed", "refused"),
    [
        (
            {"allowed_hosts": ["API.example.com"]},
            ["api.example.com", "api.example.com:443", "127.0.0.1", "localhost"],
            ["example.com"],
        ),
        ({"allowed_hosts": ["*"]}, ["evil.example"], []),
        ({"api_keys": KEYS, "allowed_hosts": None}, ["anything.example", None], []),
        ({"api_keys": KEYS, "allowed_hosts": ["api.example.com"]}, ["api.example.com"], ["evil.example"]),
        ({"allowed_hosts": None}, [None], []),
    ],
)
def test_names_that_the_config_says(serving: dict[str, Any], allowed: list[str | None], refused: list[str]) -> None:
    config = Fakes(**serving).serving
    assert [host_is_allowed(host, config) for host in (*allowed, *refused)] == [True] * len(allowed) + [False] * len(refused)


def test_a_name_is_looked_at_before_a_key() -> None:
    fakes = Fakes(api_keys=KEYS, allowed_hosts=["api.example.com"])
    assert fakes.chat(headers=bearer(ALICE)).status_code == 403
    assert fakes.chat(headers=bearer(ALICE) | {"host": "api.example.com"}).status_code == 200
