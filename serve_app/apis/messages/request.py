"""A request of Anthropic's Messages API as a chat's body. What it can't be is refused by field."""

from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic_core import to_json

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
from serve_app.errors import RequestRefused

WHY = {
    "container": "nothing is kept here between requests",
    "mcp_servers": "no tools run on this server; call them yourself, as functions",
    "thinking.type": "must be disabled or adaptive; a budget can't be held here",
    "tools.type": "only functions of yours (custom) are served here; no tools run on this server",
    "messages.content.source.type": "must be base64 or url; no files are kept here",
}


class Hinted(Part):
    """cache_control: a hint, which changes no answer; servers here cache by themselves."""

    cache_control: Any = None


class Text(Hinted):
    """citations: of an answer before, whose text stands for itself."""

    type: Literal["text"]
    text: str
    citations: Any = None


class Base64(Part):
    type: Literal["base64"]
    media_type: Annotated[str, Field(pattern=r"^image/[a-z0-9.+-]+$")]
    data: str


class Url(Part):
    type: Literal["url"]
    url: str


class Image(Hinted):
    type: Literal["image"]
    source: Annotated[Base64 | Url, Field(discriminator="type")]


class ToolResult(Hinted):
    type: Literal["tool_result"]
    tool_use_id: str
    content: Annotated[Listed[Annotated[Text | Image, Field(discriminator="type")]], as_parts("text")] = Field([])
    is_error: bool = False


class ToolUse(Hinted):
    """caller: this server's models call directly."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    caller: Any = None


class Thinking(Part):
    """Of an answer before; models are not told again what they thought."""

    type: Literal["thinking"]
    thinking: str
    signature: Any = None


class RedactedThinking(Part):
    type: Literal["redacted_thinking"]
    data: Any = None


class User(Part):
    role: Literal["user"]
    content: Annotated[Listed[Annotated[Text | Image | ToolResult, Field(discriminator="type")]], as_parts("text")]


class Assistant(Part):
    role: Literal["assistant"]
    content: Annotated[
        Listed[Annotated[Text | Thinking | RedactedThinking | ToolUse, Field(discriminator="type")]], as_parts("text")
    ]


class System(Part):
    role: Literal["system"]
    content: Annotated[Listed[Text], as_parts("text")]


class Tool(Hinted):
    type: Literal["custom"]
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    strict: bool | None = None


class Mode(Part):
    type: Literal["auto", "any", "none"]
    disable_parallel_tool_use: bool = False


class Named(Part):
    type: Literal["tool"]
    name: str
    disable_parallel_tool_use: bool = False


class ThinkingConfig(Part):
    type: Literal["disabled", "adaptive"]


class JsonSchema(Part):
    type: Literal["json_schema"]
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class OutputConfig(Part):
    effort: str | None = None
    format: JsonSchema | None = None


class MessagesRequest(Hinted):
    """metadata, service_tier: nothing that a model could be told. model: for routing to judge."""

    model: Any = None
    max_tokens: Tokens
    messages: Annotated[Listed[Annotated[User | Assistant | System, Field(discriminator="role")]], Field(min_length=1)]
    system: Annotated[Listed[Text], as_parts("text")] = Field([])
    stop_sequences: Listed[str] = Field([])
    stream: bool = False
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    thinking: ThinkingConfig | None = None
    tools: Listed[Annotated[Tool, as_type("custom")]] = Field([])
    tool_choice: Annotated[Mode | Named, Field(discriminator="type")] = Mode(type="auto")
    output_config: OutputConfig = OutputConfig()
    metadata: Any = None
    service_tier: Literal["auto", "standard_only"] | None = None


def read_request(parsed: dict[str, Any]) -> MessagesRequest:
    """Raises RequestRefused."""
    request = read(MessagesRequest, parsed, WHY)
    if request.messages[-1].role == "assistant":
        message = "messages: the last one must be the user's; to go on with an answer is not served here."
        raise RequestRefused(400, message, code="invalid_value", param="messages")
    return request


def chat_of(request: MessagesRequest) -> dict[str, Any]:
    """The body of the same chat."""
    effort = "none" if request.thinking is not None and request.thinking.type == "disabled" else request.output_config.effort
    chat = {
        "model": request.model,
        "messages": list(_messages(request)),
        "max_tokens": request.max_tokens,
        "stop": request.stop_sequences or None,
        "stream": request.stream or None,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "top_k": request.top_k,
        "reasoning_effort": effort,
        "tools": None if not request.tools else [_tool(tool) for tool in request.tools],
        "tool_choice": _tool_choice(request.tool_choice),
        "parallel_tool_calls": False if request.tool_choice.disable_parallel_tool_use else None,
    }
    if (answer_format := request.output_config.format) is not None:
        schema = {"name": "answer", "schema": answer_format.schema_, "strict": True}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    return without_unsaid(chat)


def _messages(request: MessagesRequest) -> Iterator[ChatMessage]:
    if request.system:
        yield {"role": "system", "content": chat_content(_parts(request.system))}
    for message in request.messages:
        if isinstance(message, User):
            yield from _user(message)
        elif isinstance(message, Assistant):
            yield _assistant(message)
        else:
            yield {"role": "system", "content": chat_content(_parts(message.content))}


def _user(message: User) -> Iterator[ChatMessage]:
    """Results of tools are messages of their own, of text alone; images among them follow, as the user's."""
    images: list[ChatPart] = []
    for block in message.content:
        if isinstance(block, ToolResult):
            text = "\n".join(part.text for part in block.content if isinstance(part, Text))
            # A chat has no other way to say it.
            yield {"role": "tool", "tool_call_id": block.tool_use_id, "content": f"Error: {text}" if block.is_error else text}
            images += _parts(part for part in block.content if isinstance(part, Image))
    parts = images + _parts(block for block in message.content if not isinstance(block, ToolResult))
    if parts or not message.content:
        yield {"role": "user", "content": chat_content(parts) if parts else ""}


def _assistant(message: Assistant) -> ChatMessage:
    parts = _parts(block for block in message.content if isinstance(block, Text))
    calls = [
        {"id": use.id, "type": "function", "function": {"name": use.name, "arguments": to_json(use.input).decode()}}
        for use in message.content
        if isinstance(use, ToolUse)
    ]
    content = chat_content(parts) if parts else None if calls else ""
    return {"role": "assistant", "content": content, **({"tool_calls": calls} if calls else {})}


def _parts(blocks: Iterable[Text | Image]) -> list[ChatPart]:
    return [
        {"type": "text", "text": block.text}
        if isinstance(block, Text)
        else {"type": "image_url", "image_url": {"url": _url(block.source)}}
        for block in blocks
    ]


def _url(source: Base64 | Url) -> str:
    return source.url if isinstance(source, Url) else f"data:{source.media_type};base64,{source.data}"


def _tool(tool: Tool) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.input_schema, "strict": tool.strict}
    return {"type": "function", "function": without_unsaid(function)}


def _tool_choice(choice: Mode | Named) -> Any:
    """None where it is what chats do anyway."""
    if isinstance(choice, Named):
        return {"type": "function", "function": {"name": choice.name}}
    return {"auto": None, "any": "required", "none": "none"}[choice.type]
