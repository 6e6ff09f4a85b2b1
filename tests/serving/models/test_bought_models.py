"""Both models bought elsewhere: the application for real in Ray Serve, without an engine of its own.

It runs beside the application that the other slow tests share, under a path of its own.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from openai_server import MODEL, WORDS, OpenAIServer, events, openai_server
from running_app import Served, wait_until
from servable_run import models_elsewhere, write_run
from starlette.responses import Response

pytestmark = pytest.mark.slow

MESSAGES: Any = [{"role": "user", "content": "Why?"}]


@pytest.fixture(scope="module")
def server() -> Iterator[OpenAIServer]:
    with openai_server() as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served, server: OpenAIServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    from ray import serve

    from serve_app.app import build_app

    config_path = Path(write_run(tmp_path_factory.mktemp("bought")))
    raw = yaml.safe_load(config_path.read_text())
    raw["models"] = models_elsewhere(server.url, model=MODEL)
    raw["serving"]["other_models"] = "warn"  # the server has a name of its own for them
    config_path.write_text(yaml.safe_dump(raw))
    serve.run(build_app({"config": str(config_path)}), name="bought", route_prefix="/bought")
    yield openai.OpenAI(base_url=f"{served.url}/bought/v1", api_key="none", max_retries=0, timeout=120)
    serve.delete("bought")


@pytest.mark.parametrize(("model", "answered_by"), [("firewall-0", "weak"), ("firewall-1", "strong"), ("strong", "strong")])
def test_bought_models_answer_whole_and_streaming(client: openai.OpenAI, model: str, answered_by: str) -> None:
    response = client.chat.completions.with_raw_response.create(model=model, messages=MESSAGES)
    completion = response.parse()
    assert (completion.model, response.headers["x-firewall-route"]) == (answered_by, answered_by)
    assert completion.choices[0].message.content == "".join(WORDS)
    stream = client.chat.completions.create(model=model, messages=MESSAGES, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "".join(WORDS)
    assert {chunk.model for chunk in chunks} == {answered_by}


def test_a_client_that_leaves_a_stream_is_noticed_by_the_server_it_was_bought_from(
    client: openai.OpenAI, server: OpenAIServer
) -> None:
    async def hanging(body: dict[str, Any]) -> Response:
        return events(server.chunks(body, num_words=1, hangs=True))

    server.answer = hanging
    try:
        stream = client.chat.completions.create(model="firewall", messages=MESSAGES, stream=True)
        next(iter(stream))
        stream.close()
        wait_until(lambda: server.num_left == 1, "the server has noticed", timeout_s=60)
    finally:
        server.answer = None
