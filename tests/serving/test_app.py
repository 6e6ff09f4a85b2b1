"""The whole application for real: two vLLM engines, router and ingress in one Ray Serve, asked by the official client.

The application is shared with the other slow tests of serving; the last ones here break its router.
"""

import json
import signal
import time
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from running_app import Served, processes_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from firewall_ray.engines.prompts import PromptFormat
from firewall_ray.policy import goes_strong

pytestmark = pytest.mark.slow

QUESTION = "What is the postal code of Drimaror?"
PROMPT = f"Question: {QUESTION}\nAnswer: "
CANARY = "Zyxwvutopia"  # in questions that must not show up in any log


def chat(served: Served, model: str = "firewall", question: str = QUESTION, **options: Any) -> Any:
    """The raw response: headers, and `.parse()` for the completion or the stream."""
    options = {"max_tokens": 12, "temperature": 0, **options}
    messages = options.pop("messages", [{"role": "user", "content": question}])
    return served.client.chat.completions.with_raw_response.create(model=model, messages=messages, **options)


def complete(served: Served, model: str = "firewall", prompt: Any = PROMPT, **options: Any) -> Any:
    options = {"max_tokens": 12, "temperature": 0, **options}
    return served.client.completions.with_raw_response.create(model=model, prompt=prompt, **options)


def assert_decided_as_offline(served: Served, headers: Any, prompt: str, strong_fraction: float) -> None:
    (p_weak,) = served.predictor.predict([prompt]).tolist()
    threshold = served.threshold(strong_fraction)
    (is_strong,) = goes_strong([p_weak], [prompt], threshold)
    assert float(headers["x-firewall-score"]) == pytest.approx(p_weak, abs=1e-3)
    assert float(headers["x-firewall-threshold"]) == threshold.value
    assert headers["x-firewall-route"] == ("strong" if is_strong else "weak")
    assert headers["x-firewall-router"] == served.predictor.card.version
    assert headers["x-firewall-reason"] == "score"


def greedy_answers(model_key: str, prompts: list[str]) -> list[str]:
    """What transformers generates, for comparison."""
    folder = f"quickstart/models/{model_key}"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    answers = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        answers.append(tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return answers


# Endpoints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_a_chat_goes_where_the_policy_says_and_names_the_model_that_answered(served: Served, fraction: float) -> None:
    response = chat(served, f"firewall-{fraction}")
    assert_decided_as_offline(served, response.headers, PROMPT, fraction)
    completion = response.parse()
    assert completion.model == response.headers["x-firewall-route"]
    assert completion.choices[0].message.content


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_a_completion_is_scored_as_it_is(served: Served, fraction: float) -> None:
    response = complete(served, f"firewall-{fraction}")
    assert_decided_as_offline(served, response.headers, PROMPT, fraction)
    assert response.parse().model == response.headers["x-firewall-route"]


@pytest.mark.parametrize(("fraction", "route"), [(0, "weak"), (1, "strong")])
def test_a_chat_at_the_fractions_0_and_1_is_no_business_of_the_routers(served: Served, fraction: int, route: str) -> None:
    response = chat(served, f"firewall-{fraction}")
    assert (response.headers["x-firewall-route"], response.headers["x-firewall-reason"]) == (route, "fraction")
    assert response.parse().model == route


def test_the_plain_name_takes_the_configured_fraction(served: Served) -> None:
    assert_decided_as_offline(served, chat(served, "firewall").headers, PROMPT, 0.5)


@pytest.mark.parametrize("model", ["weak", "strong"])
def test_a_models_own_id_reaches_that_model_without_routing(served: Served, model: str) -> None:
    prompts = served.test_prompts[:5]
    responses = [complete(served, model, prompt) for prompt in prompts]
    assert [response.parse().choices[0].text for response in responses] == greedy_answers(model, prompts)
    for response in responses:
        assert {k: v for k, v in response.headers.items() if k.startswith("x-firewall")} == {
            "x-firewall-route": model,
            "x-firewall-reason": "requested",
        }


@pytest.mark.parametrize("model", ["weak", "strong"])
def test_a_chat_becomes_the_tokens_that_were_sampled_also_of_a_base_model_without_a_chat_template(
    served: Served, model: str
) -> None:
    """The weak model here has no chat template, without which vLLM alone refuses chats."""
    prompt = PromptFormat(keeps_space=True) if model == "weak" else PromptFormat(is_chat=True)
    tokenizer = AutoTokenizer.from_pretrained(f"quickstart/models/{model}")
    ids = prompt.token_ids(tokenizer, {"question": QUESTION, "prompt": PROMPT})
    response = json.loads(chat(served, model, extra_body={"return_token_ids": True}).text)
    assert response["prompt_token_ids"] == ids
    assert response["choices"][0]["message"]["content"] == greedy_answers(model, [PROMPT])[0]


@pytest.mark.parametrize("fraction", [0, 1])
def test_a_chat_streams_the_same_answer(served: Served, fraction: int) -> None:
    whole = chat(served, f"firewall-{fraction}").parse()
    response = chat(served, f"firewall-{fraction}", stream=True, stream_options={"include_usage": True})
    assert response.headers["x-firewall-route"] == whole.model
    chunks = list(response.parse())
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert {chunk.model for chunk in chunks} == {whole.model}
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_a_completion_streams_the_same_answer(served: Served) -> None:
    whole = complete(served).parse()
    response = complete(served, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = list(response.parse())
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert {chunk.model for chunk in chunks} == {whole.model}


def test_what_a_client_asks_of_the_model_reaches_the_model(served: Served) -> None:
    completion = chat(served, n=3, temperature=1.0, logprobs=True, top_logprobs=2, max_tokens=2).parse()
    assert len(completion.choices) == 3
    assert all(len(token.top_logprobs) >= 2 for token in completion.choices[0].logprobs.content)
    whole = complete(served, "strong").parse().choices[0].text
    stopped = complete(served, "strong", stop=[whole[1]]).parse().choices[0]
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(whole[1])], "stop")
    seeded = [complete(served, "weak", seed=seed, temperature=1.0).parse().choices[0].text for seed in [1, 1, 2, 3, 4, 5]]
    assert seeded[0] == seeded[1]
    assert len(set(seeded)) > 1
    assert complete(served, "weak", echo=True).parse().choices[0].text.startswith(PROMPT)


def test_the_models_are_listed_and_each_id_has_a_card(served: Served) -> None:
    assert [model.id for model in served.client.models.list().data] == ["firewall", "weak", "strong"]
    for model in ("firewall", "firewall-0.3", "weak", "strong"):
        assert served.client.models.retrieve(model).id == model


def test_health_answers(served: Served) -> None:
    assert httpx.get(f"{served.url}/health").json() == {"status": "ok"}


def test_the_page_is_at_the_root(served: Served) -> None:
    assert "<title>firewall-ray</title>" in httpx.get(served.url).raise_for_status().text


def test_no_other_site_is_let_in(served: Served) -> None:
    response = httpx.get(f"{served.url}/v1/models", headers={"origin": "https://elsewhere.example"})
    assert [name for name in response.headers if name.startswith("access-control")] == []


# Decisions -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8])
def test_the_test_split_is_divided_as_offline_and_near_the_fraction_asked_for(served: Served, fraction: float) -> None:
    prompts = served.test_prompts
    decisions = []
    for start in range(0, len(prompts), 200):
        batch = prompts[start : start + 200]
        decisions += served.route(model=f"firewall-{fraction}", prompt=batch)["decisions"]
    strong = np.array([decision["route"] == "strong" for decision in decisions])
    scores = np.array([decision["score"] for decision in decisions])

    threshold = served.threshold(fraction)
    p_weak = served.predictor.predict(prompts).astype(float)
    assert (strong == goes_strong(scores, prompts, threshold)).all()
    assert scores == pytest.approx(p_weak, abs=1e-3)
    moved = strong != goes_strong(p_weak, prompts, threshold)
    assert not (moved & (scores == p_weak)).any()
    assert moved.mean() < 0.01  # by rounding, where a score lies at the threshold: a batch's size may change its last bit
    # Test and validation are 1,000 draws each, so the fraction has variance f (1 - f) (1/1000 + 1/1000); three deviations:
    # 0.054 at 0.2 and 0.8, 0.067 at 0.5. Sending all ties one way would be off by at least 0.1.
    assert abs(strong.mean() - fraction) < 3 * (fraction * (1 - fraction) * 2 / 1_000) ** 0.5


def test_tied_prompts_part_by_their_hash_and_each_always_takes_the_same_way(served: Served) -> None:
    threshold = served.threshold(0.8)
    assert (threshold.value, 0.3 < threshold.tie_share < 0.9) == (1.0, True)
    first = served.route(model="firewall-0.8", prompt=served.test_prompts[:200])["decisions"]
    tied = [i for i, decision in enumerate(first) if decision["score"] == 1.0]
    assert {first[i]["route"] for i in tied} == {"weak", "strong"}
    for i in tied[:10]:
        assert served.route(model="firewall-0.8", prompt=served.test_prompts[i]) == first[i]


def test_a_route_alone_is_the_route_of_the_request(served: Served) -> None:
    alone = served.route(model="firewall-0.5", messages=[{"role": "user", "content": QUESTION}], temperature=0)
    assert alone == served.route(model="firewall-0.5", prompt=PROMPT)
    headers = chat(served, "firewall-0.5").headers
    assert (alone["route"], alone["reason"]) == (headers["x-firewall-route"], "score")
    assert alone["score"] == pytest.approx(float(headers["x-firewall-score"]), abs=1e-5)


def test_fractions_0_and_1_never_and_always_go_strong(served: Served) -> None:
    for fraction, route in [(0, "weak"), (1, "strong")]:
        decisions = served.route(model=f"firewall-{fraction}", prompt=served.test_prompts[:50])["decisions"]
        assert {(decision["route"], decision["threshold"]) for decision in decisions} == {(route, None)}


def test_several_prompts_in_a_request_go_strong_when_one_of_them_does(served: Served) -> None:
    prompts = served.test_prompts[:50]
    routes = [decision["route"] for decision in served.route(model="firewall-0.5", prompt=prompts)["decisions"]]
    weak, strong = prompts[routes.index("weak")], prompts[routes.index("strong")]
    assert complete(served, "firewall-0.5", [weak, strong]).headers["x-firewall-route"] == "strong"
    assert complete(served, "firewall-0.5", [weak, weak]).headers["x-firewall-route"] == "weak"


def test_content_parts_and_null_content_are_read_and_passed_on(served: Served) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "nothing", "tool_call_id": "c"},
    ]
    response = chat(served, messages=messages)
    assert_decided_as_offline(served, response.headers, PROMPT, 0.5)
    assert response.parse().choices
    in_parts = chat(served, "weak", messages=messages[:1]).parse()
    assert in_parts.choices[0].message.content == chat(served, "weak").parse().choices[0].message.content


def test_token_ids_are_routed_like_the_text_that_they_are(served: Served) -> None:
    tokens = AutoTokenizer.from_pretrained("quickstart/models/strong")(PROMPT)["input_ids"]
    response = complete(served, prompt=tokens)
    assert_decided_as_offline(served, response.headers, PROMPT, 0.5)
    assert response.parse().choices[0].text == complete(served).parse().choices[0].text


def test_a_request_without_text_takes_the_fail_open_route(served: Served) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    body = {"model": "firewall", "messages": [{"role": "user", "content": [image]}]}
    headers = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).headers
    assert (headers["x-firewall-route"], headers["x-firewall-reason"]) == ("strong", "no-text")


def test_a_prompt_longer_than_the_router_reads_says_so(served: Served) -> None:
    assert served.route(prompt=PROMPT)["truncated"] is False
    assert served.route(prompt=PROMPT * 20)["truncated"] is True


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["gpt-4", "firewall-1.5", "firewall-x", "Firewall", "weak:adapter"])
def test_an_unknown_model_is_a_404_that_names_those_there_are(served: Served, model: str) -> None:
    def retrieve() -> Any:
        return served.client.models.retrieve(model)

    for ask in (lambda: chat(served, model), lambda: complete(served, model), retrieve):
        with pytest.raises(openai.NotFoundError) as refused:
            ask()
        error = refused.value.body
        assert isinstance(error, dict)
        assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", "model", "model_not_found")
        assert all(name in error["message"] for name in (model, "firewall", "weak", "strong"))


MESSAGES = [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("chat/completions", b'{"model": "firewall", "mess', 400),
        ("chat/completions", b'{"model": "firewall", "messages": "\xff\xfe"}', 400),
        ("chat/completions", b"[" * 100_000, 400),
        ("chat/completions", [1, 2], 400),
        ("chat/completions", {"model": "firewall"}, 400),
        ("chat/completions", {"messages": MESSAGES}, 400),
        ("chat/completions", {"model": 7, "messages": MESSAGES}, 400),
        ("chat/completions", {"model": "firewall", "messages": "hello"}, 400),
        ("chat/completions", {"model": "firewall", "messages": MESSAGES, "temperature": "hot"}, 400),
        ("chat/completions", {"model": "firewall", "messages": MESSAGES, "temperature": -1}, 400),
        ("chat/completions", {"model": "firewall", "messages": MESSAGES, "max_tokens": -1}, 400),
        ("chat/completions", {"model": "firewall", "messages": [{"role": "user", "content": "word " * 5_000}]}, 400),
        ("completions", {"model": "firewall", "prompt": {"a": 1}}, 400),
        ("completions", {"model": "firewall", "prompt": "x", "n": 0}, 400),
        ("completions", {"model": "firewall", "prompt": "x", "n": 10**9}, 400),
        ("completions", {"model": "firewall", "prompt": "x", "max_tokens": 10**30}, 400),
        ("completions", {"model": "firewall", "prompt": "x", "stream_options": {"include_usage": True}}, 400),
        ("completions", {"model": "firewall", "prompt": "x", "structured_outputs": 7}, 400),
        ("completions", {"model": "firewall", "prompt": "x", "structured_outputs": {"regex": "("}}, 400),
        ("completions", {"model": "firewall", "prompt": "x", "stream": True, "structured_outputs": {"regex": "("}}, 400),
        ("completions", {"model": "firewall", "prompt": None}, 400),
        ("completions", {"model": "firewall", "prompt": []}, 400),
        ("completions", {"model": "firewall", "prompt": ["a", 1]}, 400),
        ("completions", {"model": "firewall", "prompt": [-1]}, 400),
        ("completions", {"model": "firewall", "prompt": [10**9]}, 400),
        ("completions", {"model": "firewall", "prompt": [640]}, 400),  # the vocabulary's size
        ("chat/completions", {"model": "firewall", "messages": []}, 400),
        ("chat/completions", {"model": "firewall", "messages": [None]}, 400),
        ("chat/completions", {"model": "firewall", "messages": ["hello"]}, 400),
        ("chat/completions", {"model": "firewall", "messages": [{"content": "x"}]}, 400),
        ("chat/completions", {"model": "firewall", "messages": [{"role": "user", "content": 7}]}, 400),
        ("chat/completions", {"model": "firewall", "messages": [{"role": "user", "content": [7]}]}, 400),
        ("chat/completions", {"model": "firewall", "messages": [{"role": "assistant", "tool_calls": 7}]}, 400),
        ("chat/completions", {"model": "firewall", "messages": MESSAGES, "chat_template": "{{"}, 400),
        ("chat/completions", {"model": "firewall", "messages": MESSAGES, "logit_bias": {"x": 1}}, 400),
        ("chat/completions", b"x" * (17 * 2**20), 413),
        ("route", {"model": "firewall"}, 400),
        ("route", {"prompt": "x", "messages": MESSAGES}, 400),
        ("route", {"model": "gpt-4", "prompt": "x"}, 404),
        ("elsewhere", {"model": "firewall"}, 404),
    ],
)
def test_bad_input_is_refused_in_openais_shape(served: Served, path: str, body: Any, status: int) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = httpx.post(f"{served.url}/v1/{path}", content=content, headers={"content-type": "application/json"}, timeout=60)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["message"]


# When the router breaks ----------------------------------------------------------------------------------------------


def test_a_router_that_hangs_costs_a_request_the_deadline_and_no_more(served: Served) -> None:
    (process,) = processes_of("Router")
    process.send_signal(signal.SIGSTOP)
    try:
        response = chat(served, "firewall-0.0001", f"What do they drink in {CANARY}?")
    finally:
        process.send_signal(signal.SIGCONT)
    assert (response.headers["x-firewall-route"], response.headers["x-firewall-reason"]) == ("strong", "router-timeout")
    assert response.parse().model == "strong"


def test_a_dead_router_fails_open_and_comes_back(served: Served) -> None:
    (process,) = processes_of("Router")
    process.kill()
    response = chat(served, "firewall-0.0001", f"What do they eat in {CANARY}?")
    # A router that is back within the deadline may have decided after all; at this fraction it then says weak.
    decided = response.headers["x-firewall-reason"] == "score"
    assert decided or response.headers["x-firewall-reason"] in ("router-failed", "router-timeout")
    assert response.headers["x-firewall-route"] == response.parse().model == ("weak" if decided else "strong")
    deadline = time.monotonic() + 180
    while served.route(prompt=PROMPT)["reason"] != "score":
        assert time.monotonic() < deadline, "the router did not come back"
    assert_decided_as_offline(served, chat(served).headers, PROMPT, 0.5)


def test_no_prompt_is_in_any_log(served: Served) -> None:
    """After the canary went through the endpoints, and through the failures above."""
    question = f"Who rules {CANARY}?"
    chat(served, question=question)
    list(complete(served, prompt=question, stream=True).parse())
    served.route(prompt=[question])
    with pytest.raises(openai.BadRequestError):
        chat(served, question=f"{CANARY} " * 5_000)
    with pytest.raises(openai.BadRequestError):
        chat(served, question=CANARY, temperature=-1)
    for content in (7, [{"type": "text", "text": [CANARY]}], [{"type": "video", "video": CANARY}]):
        with pytest.raises(openai.BadRequestError) as refused:
            chat(served, messages=[{"role": "user", "content": CANARY}, {"role": "user", "content": content}])
        assert CANARY not in refused.value.message  # for errors end up in the caller's log
    files = [path for path in served.log_folder.rglob("*") if path.is_file()]
    assert any("replica_firewall_Ingress" in path.name for path in files)
    assert [path.name for path in files if CANARY.encode() in path.read_bytes()] == []
