"""A request of OpenAI's Responses API as a chat's body. What it can't be is refused by field."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serve_app.apis.reading import (
    ChatMessage,
    ChatPart,
    Listed,
    Part,
    Tokens,
    as_parts,
    as_type,
    chat_content,
    read,
    without_unsaid,
)

_STATELESS = "no answers are kept here; send the whole conversation as `input`"
_NO_TOOLS = "must be function; no tools run on this server"
WHY = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "store": "no answers are kept here; leave it out, or say false",
    "background": "no answers are kept here, so none can be fetched later; leave it out, or say false",
    "prompt": "no prompt templates are kept here; send the text as `input`",
    "tools.type": _NO_TOOLS,
    "input.content.file_id": "no files are kept here; send an `image_url`",
    "include": "only reasoning.encrypted_content may be asked for, and comes only from models that send it, which none here does",
    "truncation": "nothing is cut here; must be disabled",
    "top_logprobs": "logprobs are not served here, but by /v1/chat/completions",
}


class Text(Part):
    """Of the user's, of an answer before, or of a tool's result. What else an answer's text has stands in no chat."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: Any = None
    logprobs: Any = None


class Refusal(Part):
    type: Literal["refusal"]
    refusal: str


class Image(Part):
    type: Literal["input_image"]
    image_url: str
    detail: Literal["low", "high", "auto"] = "auto"


class Message(Part):
    """id, status, phase: of an answer before."""

    type: Literal["message"]
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[Listed[Annotated[Text | Refusal | Image, Field(discriminator="type")]], as_parts("input_text")]
    id: Any = None
    status: Any = None
    phase: Any = None


class FunctionCall(Part):
    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str
    id: Any = None
    status: Any = None


class FunctionCallOutput(Part):
    type: Literal["function_call_output"]
    call_id: str
    output: Annotated[Listed[Text], as_parts("input_text")]
    id: Any = None
    status: Any = None


class Reasoning(Part):
    """Of an answer before; models are not told again what they thought."""

    type: Literal["reasoning"]
    id: Any = None
    status: Any = None
    summary: Any = None
    content: Any = None
    encrypted_content: Any = None


Item = Annotated[
    Annotated[Message | FunctionCall | FunctionCallOutput | Reasoning, Field(discriminator="type")], as_type("message")
]


class Tool(Part):
    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Mode(Part):
    type: Literal["auto", "none", "required"]


class Named(Part):
    type: Literal["function"]
    name: str


ToolChoice = Annotated[
    Annotated[Mode | Named, Field(discriminator="type")],
    BeforeValidator(lambda said: {"type": said} if isinstance(said, str) else said),
]


class Effort(Part):
    """summary: what models think comes as it is."""

    effort: str | None = None
    summary: Literal["auto"] | None = None


class PlainFormat(Part):
    type: Literal["text"]


class JsonObject(Part):
    type: Literal["json_object"]


class JsonSchema(Part):
    type: Literal["json_schema"]
    name: str
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class TextConfig(Part):
    format: Annotated[PlainFormat | JsonObject | JsonSchema, Field(discriminator="type")] = PlainFormat(type="text")
    verbosity: str | None = None


def _as_items(said: Any) -> Any:
    return [{"role": "user", "content": said}] if isinstance(said, str) else said


class ResponsesRequest(Part):
    """model: for routing to judge. metadata: comes back. What is of type Any changes no answer: hints for caches, who asks."""

    model: Any = None
    input: Annotated[Listed[Item], BeforeValidator(_as_items)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool = False
    text: TextConfig = TextConfig()
    tools: Listed[Tool] = Field([])
    tool_choice: ToolChoice = Mode(type="auto")
    parallel_tool_calls: bool | None = None
    reasoning: Effort = Effort()
    metadata: dict[str, Any] | None = None
    user: str | None = None
    store: Literal[False] = False
    background: Literal[False] = False
    include: Listed[Literal["reasoning.encrypted_content"]] = Field([])
    truncation: Literal["disabled"] = "disabled"
    top_logprobs: Literal[0] = 0
    service_tier: Literal["auto", "default"] = "auto"
    stream_options: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_options: Any = None
    prompt_cache_retention: Any = None


def read_request(parsed: dict[str, Any]) -> ResponsesRequest:
    """Raises RequestRefused."""
    return read(ResponsesRequest, parsed, WHY)


def chat_of(request: ResponsesRequest) -> dict[str, Any]:
    """The body of the same chat."""
    system = [] if request.instructions is None else [{"role": "system", "content": request.instructions}]
    return without_unsaid(
        {
            "model": request.model,
            "messages": system + list(_messages(request.input)),
            "max_tokens": request.max_output_tokens,
            "stream": request.stream or None,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "reasoning_effort": request.reasoning.effort,
            "verbosity": request.text.verbosity,
            "response_format": _format(request.text.format),
            "tools": None if not request.tools else [_tool(tool) for tool in request.tools],
            "tool_choice": _tool_choice(request.tool_choice),
            "parallel_tool_calls": request.parallel_tool_calls if request.tools else None,
            "user": request.user,
        }
    )


def _messages(items: Sequence[Message | FunctionCall | FunctionCallOutput | Reasoning]) -> Iterator[ChatMessage]:
    """What an answer consists of in a row (texts, calls) is one message of a chat."""
    answer: ChatMessage | None = None
    for item in items:
        if isinstance(item, Reasoning):
            continue
        if isinstance(item, FunctionCall):
            answer = answer or {"role": "assistant", "content": None}
            call = {"id": item.call_id, "type": "function", "function": {"name": item.name, "arguments": item.arguments}}
            answer.setdefault("tool_calls", []).append(call)
            continue
        # A text begins a new answer; calls that follow belong to it.
        if answer is not None:
            yield answer
            answer = None
        if isinstance(item, FunctionCallOutput):
            yield {"role": "tool", "tool_call_id": item.call_id, "content": "\n".join(part.text for part in item.output)}
            continue
        content = chat_content([_part(part) for part in item.content]) if item.content else ""
        if item.role == "assistant":
            answer = {"role": "assistant", "content": content}
        else:
            # developer: OpenAI's newer word for system, which few chat templates know.
            yield {"role": "user" if item.role == "user" else "system", "content": content}
    if answer is not None:
        yield answer


def _part(part: Text | Refusal | Image) -> ChatPart:
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.image_url, "detail": part.detail}}
    return {"type": "text", "text": part.text if isinstance(part, Text) else part.refusal}


def _format(wanted: PlainFormat | JsonObject | JsonSchema) -> dict[str, Any] | None:
    if isinstance(wanted, PlainFormat):
        return None
    if isinstance(wanted, JsonObject):
        return {"type": "json_object"}
    schema = {"name": wanted.name, "schema": wanted.schema_, "description": wanted.description, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": without_unsaid(schema)}


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters, "strict": tool.strict}
    return {"type": "function", "function": without_unsaid(function)}


def _tool_choice(choice: Mode | Named) -> Any:
    """None where it is what chats do anyway."""
    if isinstance(choice, Named):
        return {"type": "function", "function": {"name": choice.name}}
    return None if choice.type == "auto" else choice.type
