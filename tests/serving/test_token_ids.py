"""Prompts of token ids, as lm-eval sends them: decoded by the models, and routed like the text that they are."""

from typing import Any

import pytest
from gateway_fakes import FakeRouter, Fakes

HARD_IDS, EASY_IDS = [7, 8, 9], [1, 2]
TEXTS = {tuple(HARD_IDS): "Prove it.", tuple(EASY_IDS): "Say hi."}


def decode(prompts: list[list[int]]) -> list[str]:
    return [TEXTS[tuple(ids)] for ids in prompts]


@pytest.fixture
def served() -> Fakes:
    fakes = Fakes(FakeRouter({"Prove it.": 0.125, "Say hi.": 0.75}))
    fakes.weak.decoded = fakes.strong.decoded = decode
    return fakes


@pytest.mark.parametrize(
    ("prompt", "route"), [(HARD_IDS, "strong"), (EASY_IDS, "weak"), ([EASY_IDS, HARD_IDS], "strong"), ([EASY_IDS], "weak")]
)
def test_token_ids_are_routed_like_their_text(served: Fakes, prompt: Any, route: str) -> None:
    headers = served.post("/v1/completions", {"model": "firewall", "prompt": prompt}).headers
    assert (headers["x-firewall-route"], headers["x-firewall-reason"]) == (route, "score")
    texts, _, are_questions = served.router.calls[0]
    assert texts == decode(prompt if isinstance(prompt[0], list) else [prompt])
    assert not are_questions
    (exchange,) = served.recorder.exchanges
    assert exchange.text in TEXTS.values()


def test_the_decision_alone_is_that_of_the_text_too(served: Fakes) -> None:
    of_text, of_ids = (served.post("/v1/route", {"prompt": prompt}).json() for prompt in ("Prove it.", HARD_IDS))
    assert of_ids == of_text
    decisions = served.post("/v1/route", {"prompt": [EASY_IDS, HARD_IDS]}).json()["decisions"]
    assert [decision["route"] for decision in decisions] == ["weak", "strong"]


def test_ids_that_are_two_texts_are_refused_before_a_model_guesses(served: Fakes) -> None:
    served.strong.decoded = lambda prompts: ["something else"] * len(prompts)
    response = served.post("/v1/completions", {"model": "firewall", "prompt": HARD_IDS})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
    assert "small and large" in response.json()["error"]["message"]
    assert served.post("/v1/completions", {"model": "large", "prompt": HARD_IDS}).status_code == 200


def test_one_model_that_is_dead_does_not_keep_the_other_from_reading_them(served: Fakes) -> None:
    served.strong.why = "dead"
    headers = served.post("/v1/completions", {"model": "firewall", "prompt": HARD_IDS}).headers
    assert (headers["x-firewall-decided"], headers["x-firewall-route"]) == ("strong", "weak")


def test_ids_of_a_pair_with_a_model_elsewhere_are_no_text(served: Fakes) -> None:
    served.strong.decoded = None
    headers = served.post("/v1/completions", {"model": "firewall", "prompt": HARD_IDS}).headers
    assert headers["x-firewall-reason"] == "no-text"


@pytest.mark.parametrize("prompt", [[], [[]], [1.5], [True], [1, "a"], [[1], "a"], [[[1]]]])
def test_what_is_no_list_of_ids_is_not_decoded(served: Fakes, prompt: Any) -> None:
    headers = served.post("/v1/completions", {"model": "firewall", "prompt": prompt}).headers
    assert headers["x-firewall-reason"] == "no-text"


def test_prompts_of_ids_are_counted_like_those_of_text(served: Fakes) -> None:
    assert served.post("/v1/completions", {"model": "firewall", "prompt": [[1]] * 2_049}).status_code == 400
