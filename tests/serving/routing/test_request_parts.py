"""What routing reads of a request, and what a client is told."""

import json
import math
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.config.names import is_reserved
from firewall_ray.config.run import load_config
from firewall_ray.config.serving import Route
from firewall_ray.errors import ConfigError
from serve_app.errors import RequestRefused
from serve_app.routing.decision import Decision
from serve_app.routing.request import RoutingOptions, chat_text, prompts_of, routing_options

IDS: Mapping[Route, str] = {"weak": "small", "strong": "large"}

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner),
    max_leaves=12,
)


def refusal(model: object, fraction: str | None = None) -> RequestRefused:
    with pytest.raises(RequestRefused) as refused:
        routing_options(model, {} if fraction is None else {"x-firewall-strong-fraction": fraction}, IDS)
    return refused.value


# The model's name and the header -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "fraction"),
    [("firewall", None), ("firewall-0.3", 0.3), ("firewall-0", 0), ("firewall-1", 1), ("firewall-1.0", 1), ("firewall-.25", 0.25)],
)
def test_a_model_name_carries_the_strong_fraction(model: str, fraction: float | None) -> None:
    assert routing_options(model, {}, IDS) == RoutingOptions(strong_fraction=fraction)


@pytest.mark.parametrize(
    "model",
    [
        *("", "Firewall", "xfirewall", "firewall-", "firewall-.", "firewall/0.3", "firewall-0.3 ", "firewall-0.3\n"),
        *("firewall-1.01", "firewall--0.3", "firewall-nan", "firewall-inf", "firewall-1e-1", "firewall-0,3", "firewall-0_1"),
        *("firewall-٣", "Small", "small:adapter", "weak"),
    ],
)
def test_other_names_are_a_404_that_names_those_there_are(model: str) -> None:
    error = refusal(model)
    assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
    assert all(name in error.message for name in ("firewall-0.3", "small", "large"))


def test_a_missing_model_and_one_that_is_no_text_are_400s() -> None:
    assert (refusal(None).status, refusal(None).param) == (400, "model")
    for model in (7, ["firewall"], {"id": "firewall"}, True):
        assert (refusal(model).status, refusal(model).code) == (400, "invalid_type")


@given(st.text())
def test_no_name_gives_a_fraction_outside_0_to_1(model: str) -> None:
    for name in (model, f"firewall-{model}"):
        try:
            fraction = routing_options(name, {}, IDS).strong_fraction
        except RequestRefused:
            continue
        assert fraction is None or (0 <= fraction <= 1 and is_reserved(name))


@pytest.mark.parametrize(("given_", "fraction"), [("0.7", 0.7), ("0", 0), ("1.0", 1), (".5", 0.5), (" 0.25 ", 0.25)])
def test_the_header_sets_the_fraction_of_the_plain_name(given_: str, fraction: float) -> None:
    assert routing_options("firewall", {"x-firewall-strong-fraction": given_}, IDS) == RoutingOptions(strong_fraction=fraction)


@pytest.mark.parametrize("given_", ["", "half", "1.5", "-0.1", "nan", "inf", "1e-1", "0,5", "0.5, 0.6", "٣"])
def test_a_header_that_is_no_fraction_is_refused_by_its_name(given_: str) -> None:
    assert (refusal("firewall", given_).status, refusal("firewall", given_).param) == (400, "x-firewall-strong-fraction")


def test_name_and_header_may_agree_but_not_differ() -> None:
    assert routing_options("firewall-0.5", {"x-firewall-strong-fraction": "0.50"}, IDS) == RoutingOptions(strong_fraction=0.5)
    assert refusal("firewall-0.5", "0.4").status == 400


def test_a_model_of_the_pair_by_its_own_id_asks_for_no_routing() -> None:
    assert routing_options("small", {}, IDS) == RoutingOptions(route="weak")
    assert routing_options("large", {"x-firewall-strong-fraction": "0.1"}, IDS) == RoutingOptions(route="strong")


# The text ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "question"),
    [
        (
            [{"role": "user", "content": "first"}, {"role": "assistant", "content": "x"}, {"role": "user", "content": "last"}],
            "last",
        ),
        ([{"role": "user", "content": "asked"}, {"role": "assistant", "content": None, "tool_calls": []}], "asked"),
        ([{"role": "user", "content": "asked"}, {"role": "user", "content": None}], "asked"),
        ([{"role": "user", "content": "asked"}, {"role": "user"}], "asked"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], "a\nb"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "a"}]}], "a"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], None),
        ([{"role": "system", "content": "be brief"}], None),
        ([{"role": "user", "content": " asked\n"}, {"role": "user", "content": " \n\t"}], " asked\n"),
        ([{"role": "user", "content": "asked"}, {"role": "user", "content": [{"type": "text", "text": " "}, " "]}], "asked"),
        ([{"role": "user", "content": "  "}], None),
        ([], None),
    ],
)
def test_the_question_is_the_last_user_text(messages: list, question: str | None) -> None:
    assert chat_text(messages, "last_user") == question


def test_a_conversation_is_all_that_was_said_in_its_order() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "b", "tool_call_id": "c"},
        {"role": "user", "content": "c"},
    ]
    assert chat_text(messages, "conversation") == "be brief\na\nb\nc"
    assert chat_text([], "conversation") is None


@given(st.lists(anything, max_size=4), st.sampled_from(["last_user", "conversation"]))
def test_no_shape_of_messages_crashes_routing(messages: list, which: str) -> None:
    text = chat_text(messages, which)  # type: ignore[arg-type]
    assert text is None or (isinstance(text, str) and text)


@given(anything)
def test_no_shape_of_a_prompt_crashes_routing(prompt: object) -> None:
    assert all(isinstance(text, str) for text in prompts_of(prompt))


def test_a_prompt_is_read_as_it_is_and_token_ids_are_not_read() -> None:
    assert prompts_of(" a \n") == [" a \n"]
    assert prompts_of([1, 2]) == prompts_of([[1], [2]]) == prompts_of(["a", 1]) == prompts_of(None) == []


# The decision --------------------------------------------------------------------------------------------------------


def test_headers_leave_out_what_did_not_decide() -> None:
    assert Decision("weak", "requested").headers() == {"x-firewall-route": "weak", "x-firewall-reason": "requested"}


def test_a_score_in_a_header_reads_back_exactly() -> None:
    score = 0.1 + 0.2
    assert float(Decision("weak", "score", score, 0.1, "v", True).headers()["x-firewall-score"]) == score


@pytest.mark.parametrize("threshold", [math.inf, -math.inf])
def test_a_decision_without_a_finite_threshold_is_still_json(threshold: float) -> None:
    answer = Decision("strong", "score", 0.5, threshold, "v", False).as_json("strong")
    assert json.loads(json.dumps(answer, allow_nan=False))["threshold"] is None


@pytest.mark.parametrize("setting", ["strong_fraction=1.5", "fail_open=both", "router_timeout_s=0", "threshold=0.5"])
def test_a_wrong_serving_section_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"serving\."):
        load_config("jobs/configs/quickstart.yaml", [f"serving.{setting}"])
