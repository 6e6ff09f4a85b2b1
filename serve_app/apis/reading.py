"""Requests of other APIs, read strictly: what can't be asked of a chat is a 400 that names the field, never passed over."""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from serve_app.errors import RequestRefused

MAX_FIELD = 100  # characters of a field's name in a message; an unknown one is the client's own words
MAX_FIELDS = 64  # of one object; more than any has

ChatPart = dict[str, Any]  # as OpenAI's chats have them
ChatMessage = dict[str, Any]


class Part(BaseModel):
    """Of a request. strict: as JSON has it, no "3" for 3."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=(), hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _has_few_fields(cls, said: Any) -> Any:
        # pydantic makes a problem of each unknown one, and a body has room for millions.
        if isinstance(said, dict) and len(said) > MAX_FIELDS:
            raise PydanticCustomError("too_many_fields", "has more fields than any that is served here")
        return said


Tokens = Annotated[int, Field(ge=1)]
Read = TypeVar("Read", bound=Part)
Item = TypeVar("Item")
Listed = Annotated[list[Item], FailFast()]  # for the same reason: of its items, the first problem is enough


def read(kind: type[Read], parsed: dict[str, Any], why: Mapping[str, str]) -> Read:
    """A request's body; a field that is null is one that is not there. why: of what is refused, by field without list indices.

    Raises RequestRefused: 400, of the first problem.
    """
    try:
        return kind.model_validate({name: value for name, value in parsed.items() if value is not None})
    except ValidationError as e:
        # The context of one kind alone is words of ours: the types that there are.
        problem = e.errors(include_url=False, include_input=False)[0]
        path = _path(parsed, problem["loc"], is_missing=problem["type"] == "missing")
        said = problem["msg"]
        if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
            path.append(problem["ctx"]["discriminator"].strip("'"))
            # Of the field alone: pydantic's own words repeat what came.
            said = f"must be one of {problem['ctx'].get('expected_tags', 'those that are served here')}"
        elif problem["type"] == "extra_forbidden":
            said = "is not served here"
        field = ".".join(path)[:MAX_FIELD]
        said = why.get(".".join(name for name in path if not name.isdigit()), said)
        raise RequestRefused(400, f"{field or 'body'}: {said}.", code=problem["type"], param=field or None) from e


def _path(parsed: Any, loc: tuple[int | str, ...], *, is_missing: bool) -> list[str]:
    """The way to a problem in the client's own names: pydantic puts those of types and tags in between."""
    path = []
    for i, part in enumerate(loc):
        if (isinstance(parsed, dict) and part in parsed) or (isinstance(parsed, list) and isinstance(part, int)):
            parsed = parsed[part]  # type: ignore[index]
        elif not (is_missing and i == len(loc) - 1):
            continue
        path.append(str(part))
    return path


def as_parts(kind: str) -> BeforeValidator:
    """Content that may be a plain text: one part of this type then."""
    return BeforeValidator(lambda content: [{"type": kind, "text": content}] if isinstance(content, str) else content)


def as_type(default: str) -> BeforeValidator:
    """Objects that may leave out their type: this one then."""
    return BeforeValidator(lambda item: {**item, "type": default} if isinstance(item, dict) and item.get("type") is None else item)


def chat_content(parts: list[ChatPart]) -> str | list[ChatPart]:
    """One text as a text, which every server takes."""
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def without_unsaid(body: dict[str, Any]) -> dict[str, Any]:
    """Servers take less kindly to a null than to nothing."""
    return {name: value for name, value in body.items() if value is not None}
