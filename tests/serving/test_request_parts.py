"""What routing reads of a request, and what a client is told."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firewall_ray.config import load_config
from firewall_ray.errors import ConfigError
from serve_app.decision import Decision
from serve_app.request_parts import is_reserved, prompts_of, question_of, strong_fraction_of

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "type", "text"]), inner),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("model", "fraction"),
    [("firewall", 0.7), ("firewall-0.3", 0.3), ("firewall-0", 0), ("firewall-1", 1), ("firewall-1.0", 1), ("firewall-.25", 0.25)],
)
def test_a_model_name_carries_the_strong_fraction(model: str, fraction: float) -> None:
    assert strong_fraction_of(model, default=0.7) == fraction


@pytest.mark.parametrize(
    "model",
    [
        *("", "Firewall", "xfirewall", "firewall-", "firewall-.", "firewall/0.3", "firewall-0.3 ", "firewall-0.3\n"),
        *("firewall-1.01", "firewall--0.3", "firewall-nan", "firewall-inf", "firewall-1e-1", "firewall-0,3", "firewall-0_1"),
        "firewall-٣",
    ],
)
def test_other_names_are_not_the_routers(model: str) -> None:
    assert strong_fraction_of(model, default=0.7) is None


@given(st.text())
def test_no_name_gives_a_fraction_outside_0_to_1(model: str) -> None:
    for name in (model, f"firewall-{model}"):
        fraction = strong_fraction_of(name, default=0.5)
        assert fraction is None or (0 <= fraction <= 1 and is_reserved(name))


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
        ([], None),
    ],
)
def test_the_question_is_the_last_user_text(messages: list, question: str | None) -> None:
    assert question_of(messages) == question


@given(st.lists(anything, max_size=4))
def test_no_shape_of_messages_crashes_routing(messages: list) -> None:
    assert question_of(messages) is None or question_of(messages)


@given(anything)
def test_no_shape_of_a_prompt_crashes_routing(prompt: object) -> None:
    assert all(isinstance(text, str) for text in prompts_of(prompt))


def test_a_prompt_is_read_as_it_is_and_token_ids_are_not_read() -> None:
    assert prompts_of(" a \n") == [" a \n"]
    assert prompts_of([1, 2]) == prompts_of([[1], [2]]) == prompts_of(["a", 1]) == prompts_of(None) == []


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
