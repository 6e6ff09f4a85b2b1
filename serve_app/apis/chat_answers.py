"""A chat's answer, whole or as it streams, in blocks: what other APIs' answers are made of."""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol
from uuid import uuid4

from pydantic import BaseModel
from pydantic_core import to_json

from serve_app.errors import RequestRefused
from serve_app.models.answers import Answer, Usage

DATA = b"data: "
DONE = b"[DONE]"
FAILED = "The model failed in the middle of its answer."

NO_USAGE = Usage(0, 0)  # of a server that counts nothing


class Function(BaseModel):
    name: str | None = None
    arguments: str | None = None


class ToolCall(BaseModel):
    index: int | None = None
    id: str | None = None
    function: Function | None = None


class Said(BaseModel):
    """A message, or what a stream's event adds to one. reasoning: vLLM's name; reasoning_content: others'."""

    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[ToolCall] | None = None


class Choice(BaseModel):
    """stop_reason: vLLM's, the stop string that was found."""

    index: int = 0
    message: Said | None = None
    delta: Said | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Piece(BaseModel):
    """An answer, or an event of one."""

    model: str = ""
    choices: list[Choice]


Kind = Literal["thinking", "text", "refusal", "tool"]


@dataclass
class Block:
    """What was said in a row. index: among the answer's. text: of a tool's, its arguments. key: of the tool call in its stream."""

    kind: Kind
    index: int
    call_id: str = ""
    name: str = ""
    key: int | None = None
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)


@dataclass
class Finish:
    """Why an answer ended. reason: OpenAI's finish_reason. stop: the stop string that was found, where the server says so."""

    reason: str = "stop"
    stop: str | None = None

    def note(self, choice: Choice) -> None:
        self.reason = choice.finish_reason or self.reason
        self.stop = choice.stop_reason if isinstance(choice.stop_reason, str) else self.stop


class Translation(Protocol):
    """One request of another API. chat: the same as a chat's body."""

    chat: dict[str, Any]

    def whole(self, answer: Answer) -> bytes:
        """The body of a whole answer. Raises RequestRefused: 502 of what is none."""
        ...

    def events(self, answer: Answer) -> AsyncIterator[bytes]:
        """A stream's chunks. Raises what the model's stream raises, and ValueError of what is no event."""
        ...

    def failed(self) -> bytes:
        """What ends a stream whose model failed."""
        ...


def whole_answer(answer: Answer) -> tuple[Piece, list[Block], Finish]:
    """Raises RequestRefused."""
    assert isinstance(answer.body, bytes)
    finish = Finish()
    blocks = Blocks()
    try:
        piece = Piece.model_validate_json(answer.body)
        choice = next(choice for choice in piece.choices if choice.index == 0)
        for _ in blocks.read(choice.message or Said()):
            pass
    except (StopIteration, ValueError) as e:
        raise no_answer() from e
    finish.note(choice)
    for _ in blocks.end():
        pass
    return piece, blocks.all, finish


def no_answer(what: str = "The model answered what no OpenAI-compatible server answers.") -> RequestRefused:
    """Ours: the client's request was fine."""
    return RequestRefused(502, what, code="model_failed")


Change = tuple[Literal["begins", "grows", "ends"], Block, str]


class Blocks:
    """The blocks of an answer, from what is said of it one after another. all: those that have begun."""

    def __init__(self) -> None:
        self.all: list[Block] = []
        self._open: Block | None = None
        self._held: list[str] = []

    def read(self, said: Said) -> Sequence[Change]:
        """Raises ValueError of tool calls that overlap, which neither API can say."""
        changes: list[Change] = []
        self._say(changes, "thinking", said.reasoning or said.reasoning_content)
        if said.content and self._open is not None and self._open.kind == "tool":
            self._held.append(said.content)  # vLLM's parsers send what stands between calls in the midst of one
        else:
            self._say(changes, "text", said.content)
        self._say(changes, "refusal", said.refusal)
        for i, call in enumerate(said.tool_calls or ()):
            self._call(changes, call, i if call.index is None else call.index)
        return changes

    def end(self) -> Sequence[Change]:
        """Of an answer that is over. One that said nothing has an empty text: clients look at the first block."""
        changes: list[Change] = []
        self._close(changes)
        if not self.all:
            self._begin(changes, Block("text", 0))
            self._close(changes)
        return changes

    def _say(self, changes: list[Change], kind: Kind, text: str | None) -> None:
        if not text:
            return
        if self._open is None or self._open.kind != kind:
            self._begin(changes, Block(kind, 0))
        self._grow(changes, text)

    def _call(self, changes: list[Change], call: ToolCall, key: int) -> None:
        function = call.function or Function()
        is_same = self._open is not None and self._open.key == key and call.id in (None, "", self._open.call_id)
        if not is_same:
            if not function.name:
                raise ValueError("a tool call that has no name, or goes on after another one began")
            self._begin(changes, Block("tool", 0, call.id or f"call_{uuid4().hex}", function.name, key))
        if function.arguments:
            self._grow(changes, function.arguments)

    def _begin(self, changes: list[Change], block: Block) -> None:
        self._close(changes)
        block.index = len(self.all)
        self.all.append(block)
        self._open = block
        changes.append(("begins", block, ""))

    def _grow(self, changes: list[Change], text: str) -> None:
        assert self._open is not None
        self._open.texts.append(text)
        changes.append(("grows", self._open, text))

    def _close(self, changes: list[Change]) -> None:
        if self._open is None:
            return
        changes.append(("ends", self._open, ""))
        self._open = None
        held, self._held = "".join(self._held), []
        if held.strip():
            self._say(changes, "text", held)
            self._close(changes)


class Retold(ABC):
    """A chat's stream, told in another API's events: of each chunk of the model's one, so that what left together stays so."""

    def __init__(self) -> None:
        self.blocks = Blocks()
        self.finish = Finish()
        self._has_begun = False
        self._sent: list[bytes] = []

    async def events(self, answer: Answer) -> AsyncIterator[bytes]:
        """As `Translation.events`."""
        assert not isinstance(answer.body, bytes)
        async for chunk in answer.body:
            for line in chunk.split(b"\n"):
                if line.startswith(DATA) and (data := line.removeprefix(DATA).strip()) != DONE:
                    self._read(Piece.model_validate_json(data))
            if self._sent:
                yield self._drained()
        self._begin("")
        self._tell(self.blocks.end())
        self._over(answer.usage or NO_USAGE)
        yield self._drained()

    def failed(self) -> bytes:
        """As `Translation.failed`."""
        self._sent.clear()
        self._fail()
        return self._drained()

    def _read(self, piece: Piece) -> None:
        self._begin(piece.model)
        for choice in piece.choices:
            if choice.index == 0:
                self._tell(self.blocks.read(choice.delta or Said()))
                self.finish.note(choice)

    def _begin(self, model: str) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._begun(model)

    def _tell(self, changes: Sequence[Change]) -> None:
        for change, block, text in changes:
            if change == "begins":
                self._block_begins(block)
            elif change == "grows":
                self._block_grows(block, text)
            else:
                self._block_ends(block)

    def _send(self, event: dict[str, Any]) -> None:
        self._sent.append(b"event: " + event["type"].encode() + b"\n" + DATA + to_json(event) + b"\n\n")

    def _drained(self) -> bytes:
        sent, self._sent = b"".join(self._sent), []
        return sent

    @abstractmethod
    def _begun(self, model: str) -> None: ...

    @abstractmethod
    def _block_begins(self, block: Block) -> None: ...

    @abstractmethod
    def _block_grows(self, block: Block, text: str) -> None: ...

    @abstractmethod
    def _block_ends(self, block: Block) -> None: ...

    @abstractmethod
    def _over(self, usage: Usage) -> None: ...

    @abstractmethod
    def _fail(self) -> None: ...
