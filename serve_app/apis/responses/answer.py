"""A chat's answer as one of OpenAI's Responses API, whole and streaming."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any
from uuid import uuid4

from pydantic_core import to_json

from serve_app.apis.chat_answers import FAILED, NO_USAGE, Block, Finish, Retold, whole_answer
from serve_app.apis.responses.request import ResponsesRequest, chat_of, read_request
from serve_app.models.answers import Answer, Usage

CUT_OFF = {"length": "max_output_tokens", "content_filter": "content_filter"}
PREFIXES = {"thinking": "rs", "text": "msg", "refusal": "msg", "tool": "fc"}


class ResponsesTranslation:
    """A `Translation`. Raises RequestRefused of what is no request, or none that a chat can serve."""

    def __init__(self, parsed: dict[str, Any]) -> None:
        request = read_request(parsed)
        self.chat = chat_of(request)
        self._frame = _Frame(request, parsed)
        self._stream = _Stream(self._frame)

    def whole(self, answer: Answer) -> bytes:
        """As the protocol says."""
        piece, blocks, finish = whole_answer(answer)
        return to_json(self._frame.over(piece.model, blocks, finish, answer.usage or NO_USAGE))

    def events(self, answer: Answer) -> AsyncIterator[bytes]:
        """As the protocol says."""
        return self._stream.events(answer)

    def failed(self) -> bytes:
        """As the protocol says."""
        return self._stream.failed()


class _Frame:
    """Everything of a response but what was answered: most of it is the request's."""

    def __init__(self, request: ResponsesRequest, parsed: dict[str, Any]) -> None:
        self._hex = uuid4().hex
        self._response = {
            "id": f"resp_{self._hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": "",
            "output": [],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": request.reasoning.effort, "summary": request.reasoning.summary},
            "service_tier": "default",
            "store": False,
            "temperature": request.temperature,
            "text": parsed.get("text") or {"format": {"type": "text"}},
            "tool_choice": parsed.get("tool_choice") or "auto",
            "tools": parsed.get("tools") or [],
            "top_logprobs": 0,
            "top_p": request.top_p,
            "truncation": "disabled",
            "usage": None,
            "user": request.user,
        }

    def begun(self, model: str) -> dict[str, Any]:
        self._response["model"] = model
        return self._response

    def over(self, model: str, blocks: Sequence[Block], finish: Finish, usage: Usage) -> dict[str, Any]:
        cut_off = CUT_OFF.get(finish.reason)
        output = [self.item(block) for block in blocks]
        if cut_off is not None and output:
            output[-1]["status"] = "incomplete"
        return self._response | {
            "status": "completed" if cut_off is None else "incomplete",
            "completed_at": int(time.time()) if cut_off is None else None,
            "incomplete_details": None if cut_off is None else {"reason": cut_off},
            "model": model,
            "output": output,
            "usage": _usage(usage),
        }

    def failed(self, blocks: Sequence[Block]) -> dict[str, Any]:
        error = {"code": "server_error", "message": FAILED}
        return self._response | {"status": "failed", "error": error, "output": [self.item(block, "incomplete") for block in blocks]}

    def item_id(self, block: Block) -> str:
        return f"{PREFIXES[block.kind]}_{self._hex}_{block.index}"

    def item(self, block: Block, status: str = "completed") -> dict[str, Any]:
        item: dict[str, Any] = {"id": self.item_id(block), "status": status}
        if block.kind == "tool":
            return item | {"type": "function_call", "call_id": block.call_id, "name": block.name, "arguments": block.text}
        content = [] if status == "in_progress" else [part(block, block.text)]
        if block.kind == "thinking":
            return item | {"type": "reasoning", "summary": [], "content": content}
        return item | {"type": "message", "role": "assistant", "content": content}


class _Stream(Retold):
    def __init__(self, frame: _Frame) -> None:
        super().__init__()
        self._frame = frame
        self._model = ""
        self._num_sent = 0

    def _say(self, kind: str, **fields: Any) -> None:
        self._send({"type": kind, "sequence_number": self._num_sent, **fields})
        self._num_sent += 1

    def _begun(self, model: str) -> None:
        self._model = model
        self._say("response.created", response=self._frame.begun(model))
        self._say("response.in_progress", response=self._frame.begun(model))

    def _block_begins(self, block: Block) -> None:
        item = self._frame.item(block, "in_progress")
        self._say("response.output_item.added", output_index=block.index, item=item)
        if block.kind != "tool":
            self._say("response.content_part.added", **self._place(block), part=part(block, ""))

    def _block_grows(self, block: Block, text: str) -> None:
        extra: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
        self._say(f"response.{_STREAMED[block.kind]}.delta", **self._place(block), delta=text, **extra)

    def _block_ends(self, block: Block) -> None:
        place = self._place(block)
        if block.kind == "tool":
            self._say("response.function_call_arguments.done", **place, arguments=block.text)
        else:
            extra: dict[str, Any] = {"logprobs": []} if block.kind == "text" else {}
            said = {"refusal" if block.kind == "refusal" else "text": block.text}
            self._say(f"response.{_STREAMED[block.kind]}.done", **place, **said, **extra)
            self._say("response.content_part.done", **place, part=part(block, block.text))
        # Of blocks that end before the answer does nothing is missing.
        status = "incomplete" if self.finish.reason in CUT_OFF and block is self.blocks.all[-1] else "completed"
        self._say("response.output_item.done", output_index=block.index, item=self._frame.item(block, status))

    def _over(self, usage: Usage) -> None:
        response = self._frame.over(self._model, self.blocks.all, self.finish, usage)
        self._say(f"response.{response['status']}", response=response)

    def _fail(self) -> None:
        # `error` is for OpenAI's client, which raises it. As OpenAI itself does, beside the fields of its documentation.
        error = {"message": FAILED, "type": "server_error", "param": None, "code": "model_failed"}
        self._say("error", code=error["code"], message=FAILED, param=None, error=error)
        self._say("response.failed", response=self._frame.failed(self.blocks.all))

    def _place(self, block: Block) -> dict[str, Any]:
        place: dict[str, Any] = {"item_id": self._frame.item_id(block), "output_index": block.index}
        return place if block.kind == "tool" else place | {"content_index": 0}


_STREAMED = {
    "thinking": "reasoning_text",
    "text": "output_text",
    "refusal": "refusal",
    "tool": "function_call_arguments",
}


def part(block: Block, text: str) -> dict[str, Any]:
    """What an item's content holds: of a message or of reasoning."""
    if block.kind == "thinking":
        return {"type": "reasoning_text", "text": text}
    if block.kind == "refusal":
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }
