"""A real engine, tiny, and whatever may stand in a body: it lives, and each body is answered or refused as the client's fault.

One engine in this process, without Ray Serve: the code under test is that of a model's replica. FIREWALL_RAY_BODIES says how many
bodies are made up for each endpoint.
"""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from firewall_ray.config.models import VllmModelConfig
from firewall_ray.config.serving import ServingConfig
from serve_app.crossing import ReplicaFailed
from serve_app.models.answers import Endpoint, EngineCrashed, EngineDead, WholeAnswer

pytestmark = pytest.mark.slow

VOCABULARY = 640  # of the shipped models
NUM_BODIES = int(os.environ.get("FIREWALL_RAY_BODIES", "150"))
MESSAGES = [{"role": "user", "content": "Why?"}]
Ask = Callable[[Endpoint, dict[str, Any]], WholeAnswer]


class Engine:
    """A model's replica, and the event loop that it lives in."""

    def __init__(self, loop: asyncio.AbstractEventLoop, server: Any) -> None:
        self._loop = loop
        self.server = server

    def run(self, call: Awaitable[Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(call, 120))

    def ask(self, endpoint: Endpoint, body: dict[str, Any]) -> WholeAnswer:
        """Whole, or a stream's refusal, or a stream's end as a WholeAnswer of 200."""
        raw = to_json({"model": "firewall", "max_tokens": 2, **body})
        return self.run(self._streamed(endpoint, raw) if body.get("stream") else self.server.answer(endpoint, raw))

    async def _streamed(self, endpoint: Endpoint, raw: bytes) -> WholeAnswer:
        parts = [part async for part in self.server.stream(endpoint, raw)]
        return parts[0] if isinstance(parts[0], WholeAnswer) else WholeAnswer(200, b"".join(p.chunk for p in parts), None, 0)


@pytest.fixture(scope="module")
def engine(ray_cluster: None) -> Iterator[Engine]:
    from ray.util.placement_group import remove_placement_group

    from serve_app.models.chats import ChatDefaults
    from serve_app.models.deployment import llm_config
    from serve_app.models.gpu_time import GpuTime
    from serve_app.models.replica import ModelServer
    from serve_app.models.spans import AnswerSpans

    said = {"path": "quickstart/models/weak", "device": "cpu", "dtype": "float32", "max_num_seqs": 4}
    model = VllmModelConfig.model_validate({**said, "engine_kwargs": {"enforce_eager": True}})
    config = llm_config("weak", model, ServingConfig())
    config.get_or_create_callback().ctx.run_init_node = False  # a download, on a placement group that may not be there yet
    variables = config.runtime_env["env_vars"]  # type: ignore[index]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        loop = asyncio.new_event_loop()
        server = ModelServer.sync_init(config)
        server._chats, server._stall_s, server._gpu_time = ChatDefaults(), 600.0, GpuTime(1)
        server._spans = AnswerSpans(None, "weak")
        loop.run_until_complete(server.start())
        yield Engine(loop, server)
        loop.run_until_complete(_stopped(server))
        loop.close()
        remove_placement_group(config.get_or_create_callback().ctx.placement_group)  # its CPU is wanted by others


async def _stopped(server: Any) -> None:
    """In the loop, which closes its sockets: with one open the process would never end."""
    server.engine._engine_client.shutdown()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def schema(of: Any) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": of}}}


CYCLE = {"$ref": "#/definitions/a", "definitions": {"a": {"$ref": "#/definitions/a"}}}
KILLERS: list[tuple[Endpoint, dict[str, Any]]] = [
    *(("completions", {"prompt": prompt}) for prompt in ([VOCABULARY], [1, VOCABULARY], [[1], [VOCABULARY]], [-1], [2**40])),
    ("completions", {"prompt": [2**80]}),
    *(("chat", {"messages": MESSAGES, **schema(of)}) for of in ({"$ref": "#"}, {"anyOf": [{"$ref": "#"}]}, CYCLE)),
    ("chat", {"messages": MESSAGES, "structured_outputs": {"grammar": "root ::= root"}}),
    ("completions", {"prompt": "Why?", "structured_outputs": {"json": {"$ref": "#"}}}),
    *(("completions", {"prompt": "Why?", field: [VOCABULARY]}) for field in ("stop_token_ids", "allowed_token_ids")),
    ("completions", {"prompt": "Why?", "logit_bias": {str(VOCABULARY): 1}}),
]


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(("endpoint", "body"), KILLERS)
def test_what_killed_an_engine_or_was_called_its_failure_is_a_400(
    engine: Engine, endpoint: Endpoint, body: dict[str, Any], streams: bool
) -> None:
    answer = engine.ask(endpoint, {**body, "stream": streams})
    assert answer.status == 400, answer.body
    assert from_json(answer.body)["error"]["message"]
    engine.run(engine.server.check_health())


def test_five_stop_strings_are_too_many_and_the_message_says_so(engine: Engine) -> None:
    message = from_json(engine.ask("chat", {"messages": MESSAGES, "stop": list("abcde")}).body)["error"]["message"]
    assert message.startswith("stop: ")
    assert "at most 4" in message


def test_token_ids_are_decoded_to_the_text_that_they_are(engine: Engine) -> None:
    tokenizer = engine.server.engine._engine_client.get_tokenizer()
    texts = ["Question: What is the capital of Docenyx?\nAnswer: ", "two"]
    ids = [tokenizer.encode(text) for text in texts]
    assert engine.run(engine.server.decode(ids)) == texts
    assert engine.run(engine.server.decode([[VOCABULARY, -1, 2**80]])) == [""]


@pytest.mark.parametrize("options", [{"continuous_usage_stats": True}, {"continuous_usage_stats": True, "include_usage": False}])
def test_continuous_usage_without_usage_adds_nothing(engine: Engine, options: dict[str, bool]) -> None:
    body = {"prompt": "Why?", "stream": True, "stream_options": options}
    assert b'"usage"' not in engine.ask("completions", body).body
    with_usage = engine.ask("completions", {**body, "stream_options": {**options, "include_usage": True}})
    assert with_usage.body.count(b'"usage":{') == 3  # of two tokens, and of the whole


# Whatever else may stand in a body -----------------------------------------------------------------------------------

ids = st.integers(-2, VOCABULARY + 2) | st.sampled_from([2**31, 2**63, 2**64])
numbers = st.integers(-3, 12) | st.sampled_from([-(2**63), 2**31, 2**63 - 1]) | st.floats(-3, 3) | st.floats(allow_nan=False)
words = st.text(max_size=6) | st.sampled_from(["", "\0", "Why?", "json_object", "text", "none", "auto", "weak", "\ud7ff"])
json_schemas = st.recursive(
    st.sampled_from(
        [{}, {"type": "string"}, {"type": "integer"}, {"$ref": "#"}, {"enum": ["a"]}, {"pattern": "(a|a)*b"}, {"type": "x"}]
    ),
    lambda inner: (
        st.builds(lambda a: {"type": "object", "properties": {"a": a}}, inner)
        | st.builds(lambda a: {"anyOf": [a]}, inner)
        | st.builds(lambda a: {"type": "array", "items": a, "minItems": 2}, inner)
    ),
    max_leaves=4,
)
forms = st.one_of(
    st.builds(lambda of: {"type": "json_schema", "json_schema": {"name": "x", "schema": of}}, json_schemas),
    st.sampled_from([{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "structural_tag"}]),
)
structured = st.one_of(
    st.builds(lambda of: {"json": of}, json_schemas),
    st.builds(lambda text: {"regex": text}, words | st.sampled_from(["[a", "(", "a{1,3}", "(?<=a)b"])),
    st.builds(lambda texts: {"choice": texts}, st.lists(words, max_size=3)),
    st.builds(lambda text: {"grammar": text}, words | st.sampled_from(["root ::= root", 'root ::= "a"', "start: start"])),
    st.sampled_from([{"json_object": True}, {"json_object": False}, {}, {"structural_tag": "{}"}]),
)
KNOWN: dict[str, st.SearchStrategy[Any]] = {
    "logit_bias": st.dictionaries(ids.map(str), numbers, max_size=3),
    "response_format": forms,
    "structured_outputs": structured,
    **dict.fromkeys(["stop_token_ids", "allowed_token_ids", "logprob_token_ids"], st.lists(ids, max_size=3)),
    **dict.fromkeys(["stop", "bad_words"], words | st.lists(words, max_size=5)),
    "n": st.sampled_from([-1, 0, 1, 2]),  # how much work one may ask for is admission's
    "max_tokens": st.sampled_from([-1, 0, 1, 2, 2**31]),
    "max_completion_tokens": st.sampled_from([-1, 0, 1, 2, 2**63]),
    "truncate_prompt_tokens": st.sampled_from([-2, -1, 0, 1, 5, 2**40]),
}
NOT_HERE = {"model", "messages", "prompt", "stream", "request_id"}


def bodies(endpoint: Endpoint) -> st.SearchStrategy[dict[str, Any]]:
    """Any of vLLM's own parameters, with values of the right kind and of any other."""
    from serve_app.models.replica import REQUEST_TYPES

    other = numbers | words | st.booleans() | st.none() | st.lists(ids | words, max_size=2) | st.just({})
    fields = REQUEST_TYPES[endpoint].model_fields.keys() - NOT_HERE
    options = st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True).flatmap(
        lambda chosen: st.fixed_dictionaries({field: KNOWN.get(field, other) | other for field in chosen})
    )
    texts = words.map(lambda text: "Why? " + text)
    asked = (
        st.builds(lambda text: {"messages": [{"role": "user", "content": text}]}, texts)
        if endpoint == "chat"
        else st.builds(lambda prompt: {"prompt": prompt}, texts | st.lists(ids, max_size=4) | st.lists(st.lists(ids), max_size=2))
    )
    return st.builds(lambda a, b, streams: {**b, **a, "stream": streams}, asked, options, st.booleans())


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_no_body_kills_the_engine_or_is_called_its_failure(engine: Engine, endpoint: Endpoint) -> None:
    @settings(max_examples=NUM_BODIES, database=None, derandomize=False)
    @given(body=bodies(endpoint))
    def check(body: dict[str, Any]) -> None:
        body = from_json(to_json(body))  # as it arrives
        answer = engine.ask(endpoint, body)
        assert 200 <= answer.status < 500, (answer.status, answer.body)
        engine.run(engine.server.check_health())

    check()
    assert engine.ask("completions", {"prompt": "Why?"}).status == 200


# The last one: it has no engine any more ------------------------------------------------------------------------------


def test_an_engine_that_ends_by_itself_crashed_and_later_requests_are_not_blamed(engine: Engine) -> None:
    # A child of this process. The engines of the application that other tests share are children of its replicas.
    (core,) = [each for each in psutil.Process().children() if "EngineCore" in each.name()]

    async def crash() -> None:
        core.send_signal(signal.SIGSTOP)
        body = {"model": "firewall", "prompt": "Why?", "max_tokens": 2}
        whole, stream = to_json(body), to_json({**body, "stream": True})
        asked = [engine.server.answer("completions", whole), anext(engine.server.stream("completions", stream))]
        asking = [asyncio.ensure_future(each) for each in asked]
        await asyncio.sleep(0.5)  # it is in there
        # Like SIGSEGV to whoever looks at how it ended, but no library's handler writes traces first while the engine answers.
        core.send_signal(signal.SIGXCPU)
        core.send_signal(signal.SIGCONT)
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [EngineCrashed] * 2

    engine.run(crash())
    with pytest.raises(EngineDead):
        engine.ask("completions", {"prompt": "Why?"})
    with pytest.raises(ReplicaFailed):  # for Serve, which replaces the replica, and for the ingress, which has no vLLM
        engine.run(engine.server.check_health())
