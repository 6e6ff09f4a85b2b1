"""A model at an OpenAI-compatible server elsewhere, with its own URL and key. Runs on ingress replicas.

It only waits on the network, so it needs no deployment. Its answers name the model by the pair's id, as local ones do.
"""

from collections.abc import AsyncIterator
from typing import Any

import httpx
from pydantic_core import from_json, to_json

from firewall_ray.config import OpenAIModelConfig
from firewall_ray.engines.openai_engine import api_key
from firewall_ray.serving_config import ServingConfig
from serve_app.answers import Answer, Endpoint, ModelUnavailable, Unavailable, Usage
from serve_app.http_errors import error_body

PATHS: dict[Endpoint, str] = {"chat": "/chat/completions", "completions": "/completions"}

# Statuses that say that the server has no room now, and those that the client's own body caused.
OVERLOADED = frozenset({429, 503, 529})
CLIENTS_FAULT = frozenset({400, 413, 415, 422})


class RemoteModel:
    """A `ModelClient`. key: the model's name in the run's config. Raises ConfigError where its API key is not set here."""

    def __init__(self, key: str, config: OpenAIModelConfig, serving: ServingConfig) -> None:
        self._key = key
        self._config = config
        self._serving = serving
        secret = api_key(key, config)
        limit = config.max_concurrency
        self._client = httpx.AsyncClient(
            base_url=config.base_url.rstrip("/"),
            headers={} if secret is None else {"authorization": f"Bearer {secret}"},
            limits=httpx.Limits(max_connections=limit, max_keepalive_connections=limit),
        )
        self._num_in_flight = 0

    async def ask(self, endpoint: Endpoint, body: bytes, *, streams: bool) -> Answer:
        """As the protocol says."""
        if self._num_in_flight >= self._config.max_concurrency:
            raise ModelUnavailable("overloaded")
        parsed = from_json(body)
        parsed["model"] = self._config.model
        usage_is_wanted = bool((parsed.get("stream_options") or {}).get("include_usage"))
        if streams:
            parsed["stream_options"] = {**(parsed.get("stream_options") or {}), "include_usage": True}
        timeout_s = self._serving.first_token_timeout_s if streams else self._serving.answer_timeout_s
        request = self._client.build_request(
            "POST", PATHS[endpoint], content=to_json(parsed), headers={"content-type": "application/json"}, timeout=timeout_s
        )
        self._num_in_flight += 1
        handed_over = False
        try:
            response = await self._client.send(request, stream=True)
            try:
                if response.status_code in CLIENTS_FAULT:
                    await response.aread()
                    return Answer(response.status_code, _their_error(response))
                if not response.is_success:
                    raise ModelUnavailable("overloaded" if response.status_code in OVERLOADED else "failed")
                if not streams:
                    return self._whole(await response.aread())
                events = response.aiter_lines()
                first = await _first_event(events)
                answer = Answer(200, b"")
                answer.body = self._chunks(response, first, events, answer, usage_is_wanted)
                handed_over = True
                return answer
            finally:
                if not handed_over:
                    await response.aclose()
        except httpx.HTTPError as e:
            raise ModelUnavailable(_why(e)) from e
        except ValueError as e:  # the body is not what an OpenAI-compatible server sends
            raise ModelUnavailable("failed") from e
        finally:
            if not handed_over:
                self._num_in_flight -= 1

    async def check(self) -> None:
        """As the protocol says: the server lists its models."""
        (await self._client.get("/models", timeout=5)).raise_for_status()

    def _whole(self, body: bytes) -> Answer:
        parsed = from_json(body)
        if not isinstance(parsed, dict) or "choices" not in parsed:
            raise ValueError("not a completion")
        parsed["model"] = self._key
        return Answer(200, to_json(parsed), _usage_of(parsed))

    async def _chunks(
        self, response: httpx.Response, first: str, events: AsyncIterator[str], answer: Answer, usage_is_wanted: bool
    ) -> AsyncIterator[bytes]:
        """The stream's events one by one, each under the pair's id. The usage at its end goes into `answer`."""
        try:
            if chunk := self._renamed(first, answer, usage_is_wanted):
                yield chunk
            async for line in events:
                if line.startswith("data:") and (chunk := self._renamed(line, answer, usage_is_wanted)):
                    yield chunk
        finally:
            self._num_in_flight -= 1
            await response.aclose()

    def _renamed(self, line: str, answer: Answer, usage_is_wanted: bool) -> bytes | None:
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return b"data: [DONE]\n\n"
        parsed = from_json(data)
        if usage := _usage_of(parsed):
            answer.usage = usage
            if not usage_is_wanted and not parsed.get("choices"):
                return None
        if "choices" in parsed:
            parsed["model"] = self._key
        return b"data: " + to_json(parsed) + b"\n\n"


async def _first_event(lines: AsyncIterator[str]) -> str:
    async for line in lines:
        if line.startswith("data:"):
            if "error" in from_json(line.removeprefix("data:").strip()):
                raise ModelUnavailable("failed")
            return line
    raise ValueError("an event stream without events")


def _usage_of(parsed: dict[str, Any]) -> Usage | None:
    usage = parsed.get("usage")
    return Usage(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)) if isinstance(usage, dict) else None


def _their_error(response: httpx.Response) -> bytes:
    """The server's own words where they are in OpenAI's shape."""
    try:
        if isinstance(from_json(response.content)["error"]["message"], str):
            return response.content
    except (ValueError, TypeError, KeyError):
        pass
    return error_body(response.status_code, "The model refused the request.")


def _why(error: httpx.HTTPError) -> Unavailable:
    if isinstance(error, httpx.PoolTimeout):
        return "overloaded"
    return "timeout" if isinstance(error, httpx.TimeoutException) else "dead"
