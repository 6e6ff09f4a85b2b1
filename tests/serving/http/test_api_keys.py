"""How a key is made, and whose it is."""

import hashlib

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from firewall_ray.config.callers import ApiKeyConfig
from firewall_ray.config.serving import ServingConfig
from serve_app import api_keys
from serve_app.api_keys import key_in, make_key

# NIST's example of SHA-256, FIPS 180-2 appendix B.1: of "abc".
ABC = ApiKeyConfig(name="nist", sha256="ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")


def name_of(authorization: list[bytes], keys: list[ApiKeyConfig]) -> str | None:
    found = key_in(authorization, keys)
    return None if found is None else found.name


def run_main(*args: str) -> tuple[int, str]:
    import typer

    app = typer.Typer()
    app.command()(api_keys.main)
    result = CliRunner().invoke(app, list(args))
    return result.exit_code, result.output


def test_the_hash_is_the_published_sha256_of_the_key() -> None:
    assert name_of([b"Bearer abc"], [ABC]) == "nist"


@pytest.mark.parametrize("scheme", [b"Bearer", b"bearer", b"BEARER", b"bEaReR"])
@pytest.mark.parametrize(("before", "between", "after"), [(b"", b" ", b""), (b" ", b"  ", b" ")])
def test_the_scheme_may_have_any_case_and_spaces(scheme: bytes, before: bytes, between: bytes, after: bytes) -> None:
    assert name_of([before + scheme + between + b"abc" + after], [ABC]) == "nist"


@pytest.mark.parametrize(
    "headers",
    [
        *([], [b""], [b"Bearer"], [b"Bearer "], [b"abc"], [b"Bearerabc"], [b"Basic abc"], [b"Token abc"]),
        *([b"Bearer abcd"], [b"Bearer ab"], [b"Bearer ABC"], [b"Bearer abc d"], [b"Bearer abc,Bearer abc"], [b"Bearer\x00abc"]),
        *([b"Bearer abc\x00"], [b"Bearer \xff\xfe"], ["Bearer аbc".encode()], [b"Bearer\xa0abc"]),
        *([b"Bearer " + ABC.sha256.encode()], [b"Bearer " + b"a" * 100_000]),
        [b"Bearer abc", b"Bearer abc"],
        [b"Bearer wrong", b"Bearer abc"],
        [b"Bearer abc", b""],
    ],
)
def test_whatever_else_is_nobodys_key(headers: list[bytes]) -> None:
    assert name_of(headers, [ABC]) is None


@given(st.lists(st.binary() | st.binary().map(lambda b: b"Bearer " + b), max_size=2))
def test_no_header_is_let_in_or_crashes(headers: list[bytes]) -> None:
    key, config = make_key("someone")
    assert name_of(headers, [ABC, config]) is None or headers == [b"Bearer abc"]
    assert name_of([f"Bearer {key}".encode()], [ABC, config]) == "someone"


@pytest.mark.parametrize("header", [[], [b"Bearer wrong"], [b"Bearer abc"]])
def test_every_hash_is_compared_whoever_calls(header: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(expected: str, given: str) -> bool:
        compared.append(expected)
        return expected == given

    keys = [ABC, *(make_key(f"key-{i}")[1] for i in range(4))]
    monkeypatch.setattr(api_keys.hmac, "compare_digest", compare)
    key_in(header, keys)
    assert compared == [key.sha256 for key in keys]


def test_no_key_comes_without_keys() -> None:
    assert name_of([b"Bearer abc"], []) is None


def test_every_key_is_another_and_has_256_random_bits() -> None:
    keys = {make_key("a")[0] for _ in range(100)}
    assert len(keys) == 100
    assert all(key.startswith("fw-") and len(key) == len("fw-") + 43 for key in keys)  # 32 bytes in base 64: ceil(256 / 6)


@pytest.mark.parametrize("name", ["alice", "123", "true", "1.5", "null", "a_b-c.d"])
def test_the_lines_that_are_printed_let_the_key_in(name: str) -> None:
    code, output = run_main(name)
    assert code == 0
    key = next(word for word in output.split() if word.startswith("fw-"))
    lines = output[output.index("serving:") :]
    assert key not in lines  # they will be committed somewhere
    serving = ServingConfig.model_validate(yaml.safe_load(lines)["serving"])
    assert isinstance(serving.api_keys, list)
    assert serving.api_keys[0].sha256 == hashlib.sha256(key.encode()).hexdigest()
    assert name_of([f"Bearer {key}".encode()], serving.api_keys) == name


@pytest.mark.parametrize("name", ["", "a b", "../x", "a" * 65, "x: y", "é"])
def test_a_name_that_the_config_would_refuse_makes_no_key(name: str) -> None:
    code, output = run_main(name)
    assert code == 2
    assert "fw-" not in output


@pytest.mark.parametrize("keys", [[], "off", "enabled", [{"name": "a"}], [{"name": "a", "sha256": "fw-secret"}], False])
def test_keys_are_off_only_when_the_config_says_disabled(keys: object) -> None:
    with pytest.raises(ValueError, match="api_keys"):
        ServingConfig.model_validate({"api_keys": keys})
