"""A chat's answer as one of Anthropic's Messages API, whole and streaming."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

from pydantic_core import from_json, to_json

from serve_app.apis.chat_answers import FAILED, NO_USAGE, Block, Finish, Retold, no_answer, whole_answer
from serve_app.apis.messages.errors import error_of
from serve_app.apis.messages.request import MessagesRequest, chat_of, read_request
from serve_app.models.answers import Answer, Usage

STOP_REASONS = {
    "stop": "end_turn",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "content_filter": "refusal",
}


class MessagesTranslation:
    """A `Translation`. Raises RequestRefused of what is no request, or none that a chat can serve."""

    def __init__(self, parsed: dict[str, Any]) -> None:
        self._request = read_request(parsed)
        self.chat = chat_of(self._request)
        self._stream = _Stream(self._request)

    def whole(self, answer: Answer) -> bytes:
        """As the protocol says."""
        piece, blocks, finish = whole_answer(answer)
        message = _message(piece.model, answer.usage or NO_USAGE)
        message["content"] = [_content(block, finish) for block in blocks]
        return to_json(message | _stop(self._request, blocks, finish))

    def events(self, answer: Answer) -> AsyncIterator[bytes]:
        """As the protocol says."""
        return self._stream.events(answer)

    def failed(self) -> bytes:
        """As the protocol says."""
        return self._stream.failed()


class _Stream(Retold):
    def __init__(self, request: MessagesRequest) -> None:
        super().__init__()
        self._request = request

    def _begun(self, model: str) -> None:
        # What the prompt took is known at the end, and is said there.
        self._send({"type": "message_start", "message": _message(model, NO_USAGE)})

    def _block_begins(self, block: Block) -> None:
        self._send({"type": "content_block_start", "index": block.index, "content_block": _empty(block)})

    def _block_grows(self, block: Block, text: str) -> None:
        if block.kind == "tool":
            delta = {"type": "input_json_delta", "partial_json": text}
        elif block.kind == "thinking":
            delta = {"type": "thinking_delta", "thinking": text}
        else:
            delta = {"type": "text_delta", "text": text}
        self._send({"type": "content_block_delta", "index": block.index, "delta": delta})

    def _block_ends(self, block: Block) -> None:
        self._send({"type": "content_block_stop", "index": block.index})

    def _over(self, usage: Usage) -> None:
        stop = _stop(self._request, self.blocks.all, self.finish)
        self._send({"type": "message_delta", "delta": stop, "usage": _usage(usage)})
        self._send({"type": "message_stop"})

    def _fail(self) -> None:
        self._send(error_of(502, FAILED))


def _message(model: str, usage: Usage) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": _usage(usage),
    }


def _empty(block: Block) -> dict[str, Any]:
    if block.kind == "tool":
        return {"type": "tool_use", "id": block.call_id, "name": block.name, "input": {}}
    if block.kind == "thinking":
        # Anthropic's servers sign theirs. Nothing here reads a signature, but clients want one to send back.
        return {"type": "thinking", "thinking": "", "signature": ""}
    return {"type": "text", "text": ""}


def _content(block: Block, finish: Finish) -> dict[str, Any]:
    """Raises RequestRefused where a tool's arguments are none."""
    content = _empty(block)
    if block.kind == "tool":
        content["input"] = _arguments(block.text, is_cut_off=finish.reason == "length")
    else:
        content[content["type"]] = block.text
    return content


def _arguments(text: str, *, is_cut_off: bool) -> dict[str, Any]:
    """is_cut_off: at max_tokens; what there is of them then."""
    try:
        arguments = from_json(text.strip() or "{}", allow_partial=is_cut_off)
    except ValueError as e:
        raise no_answer("The model called a tool with arguments that are not JSON.") from e
    if not isinstance(arguments, dict):
        raise no_answer("The model called a tool with arguments that are no JSON object.")
    return arguments


def _stop(request: MessagesRequest, blocks: list[Block], finish: Finish) -> dict[str, Any]:
    # A model's stop strings may be its own (`ChatDefaults`), which the client knows nothing of.
    if finish.reason == "stop" and finish.stop in request.stop_sequences:
        return {"stop_reason": "stop_sequence", "stop_sequence": finish.stop}
    reason = STOP_REASONS.get(finish.reason, "end_turn")
    # A call of the tool that the client named ends with "stop", and so does a refusal.
    if reason == "end_turn" and blocks[-1].kind in ("tool", "refusal"):
        reason = "tool_use" if blocks[-1].kind == "tool" else "refusal"
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(usage: Usage) -> dict[str, int]:
    """Anthropic counts what was in the cache beside the other tokens, OpenAI among them."""
    return {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
