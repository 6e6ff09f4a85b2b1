"""Which text of an answer is its program: code is found in Markdown or between prose, and what belongs together is joined.

An answer goes in, Python source comes out. Nothing is executed here, only parsed. Runs wherever rows are graded.

A part of an answer is a fenced block (backticks or tildes, in a list or quotation, never closed, with a fence in its docstring) or,
where no block serves, a run of lines between prose that parses. The first part that defines what is asked for is the program, and
with it each part that defines a name which it reads: imports and helpers often have a block of their own. Of a part, what follows
the first unindented line that does not parse is left out, and so is what only tries the program out, see `_without_trials`.
"""

import ast
import builtins
import re
import symtable
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from markdown_it import MarkdownIt

MAX_CHARACTERS = 50_000  # A longer answer is taken as it is: parsing nests in time, and no program that was asked for is as long.
MAX_TRIES = 25  # parses for one part; each takes one paragraph of prose away

# Blocks alone. No indented code: a fence may then be indented by any width, as in lists that are indented themselves.
_MARKDOWN = MarkdownIt("commonmark").disable(["inline", "code", "html_block"])
# A fence at the end of a line with a word, which Markdown does not take for one.
_GLUED_FENCE = re.compile(r"^(?=[^`\n]*[^\W\d])([^`\n]*[^`\s])[ \t]*```(\w*)[ \t]*$", re.MULTILINE)
_FENCE_LINE = re.compile(r"[ \t]*`{3,}[ \t]*")
_TILDES = re.compile(r"(?:^|(?<=[ \t>]))~{3,}(?=[ \t]*[\w.{}+-]*[ \t]*$)", re.MULTILINE)
_PYTHON = re.compile(r"[{.\s]*(i?py|code|$)", re.IGNORECASE)  # python3, {.python}, ipython; or no label at all
_CODE_LINE = re.compile(
    r"[ \t]*(?:(?:async )?def \w|class \w+ *[:(]|@\w|import \w|from \S+ import |return\b|\w+(?: *: *\w[^=]*)? *= *\S)"
)
_DEFINITION = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


class Part(NamedTuple):
    """Source that parses. binds: names that it defines at its top level, stubs not counted. reads: global names that it uses,
    inner_reads: those within its functions and classes."""

    source: str
    binds: frozenset[str]
    reads: frozenset[str]
    inner_reads: frozenset[str]


def parses(source: str, as_module: bool = False) -> ast.Module | None:
    """The tree, or None where it is no Python. as_module: `return` outside of a function is none either."""
    try:
        # A doubtful escape in a model's string is not this program's warning.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if as_module:
                compile(source, "answer", "exec", dont_inherit=True)
            return ast.parse(source)
    # A null character, a lone surrogate, nesting without end.
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None


def with_backticks(answer: str) -> str:
    """The answer with its fences in backticks, which are never Python: `~~~python` is a name complemented three times."""
    return _TILDES.sub(lambda fence: "`" * len(fence.group()), answer)


def is_code(answer: str) -> bool:
    """Does any line look like Python? Prose does not, even where it happens to parse."""
    return any(_CODE_LINE.match(line.lstrip("> \t")) for line in answer.splitlines())


def find_program(answer: str, wanted: Iterable[str], given: Iterable[str] = ()) -> str | None:
    """The parts that define the names `wanted`, with what they need beyond the names `given`; None where none of them is defined.

    >>> find_program("Use\\n```\\nimport math\\n```\\nso:\\n```py\\ndef tau():\\n    return 2 * math.pi\\n```", ["tau"])
    'import math\\n\\ndef tau():\\n    return 2 * math.pi\\n'
    """
    if len(answer) > MAX_CHARACTERS:
        return None
    wanted, given = list(wanted), {*given, *dir(builtins)}
    blocks = list(fenced_blocks(answer))
    readings: tuple[Callable[[], Iterable[str]], ...] = (
        lambda: (source for label, source in blocks if _PYTHON.match(label)),
        lambda: (source for _, source in blocks),
        lambda: _runs_of_code(answer),
        # The prompt ends in a space, which some models repeat.
        lambda: _runs_of_code(answer.lstrip()),
    )
    for reading in readings:
        parts = [part for part in map(_part, reading()) if part is not None]
        chosen = _needed(parts, wanted, given)
        if chosen:
            return "\n\n".join(_without_trials(part, wanted).rstrip("\n") for part in chosen) + "\n"
    return None


# Blocks and runs -----------------------------------------------------------------------------------------------------


def fenced_blocks(answer: str) -> Iterator[tuple[str, str]]:
    """(label, content) of each fenced block, in order; the content without the block's own indentation."""
    text = _GLUED_FENCE.sub(r"\1\n```\2", answer.replace("\r\n", "\n"))
    lines = text.split("\n")
    end_of_last = 0
    for token in _MARKDOWN.parse(text):
        if token.type == "fence" and token.map is not None and token.map[0] >= end_of_last:
            content, (begin, end_of_last) = textwrap.dedent(token.content), token.map
            if parses(content) is None:
                # A fence in a docstring closed the block too early for Markdown.
                for end in [i for i in range(end_of_last, len(lines)) if _FENCE_LINE.fullmatch(lines[i])][:MAX_TRIES]:
                    longer = textwrap.dedent("\n".join(lines[begin + 1 : end]) + "\n")
                    if parses(longer) is not None:
                        content, end_of_last = longer, end + 1
                        break
            yield token.info, content


def _runs_of_code(answer: str) -> Iterator[str]:
    """Of an answer without fences: from a line that begins a definition, an import or an assignment, as far as it parses."""
    lines = answer.replace("\r\n", "\n").split("\n")
    number, num_tries = 0, 0
    while number < len(lines) and num_tries < MAX_TRIES:
        if not _CODE_LINE.match(lines[number]):
            number += 1
            continue
        indent, end = _width(lines[number]), number + 1
        while end < len(lines) and (not lines[end].strip() or _width(lines[end]) >= indent):
            end += 1
        run = longest_head(textwrap.dedent("\n".join(lines[number:end])))
        if run.strip():
            yield run
        number, num_tries = number + run.rstrip("\n").count("\n") + 1, num_tries + 1


def longest_head(source: str) -> str:
    """The source up to the unindented line from which on it does not parse: prose after a program, or a program cut off."""
    lines = source.split("\n")
    for _ in range(MAX_TRIES):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse("\n".join(lines))
        except SyntaxError as e:
            at = min(e.lineno or len(lines), len(lines)) - 1
            # An error within a function is the function's.
            while at > 0 and (not lines[at].strip() or lines[at][0].isspace()):
                at -= 1
            lines = [*lines[:at], ""]
            if at <= 0:
                break
        except (ValueError, MemoryError, RecursionError):
            break
        else:
            return "\n".join(lines)
    return ""


def _width(line: str) -> int:
    return len(line) - len(line.lstrip())


# What belongs together -----------------------------------------------------------------------------------------------


def _part(block: str) -> Part | None:
    source = longest_head(block)
    tree = parses(source)
    if tree is None or not tree.body:
        return None
    try:
        top = symtable.symtable(source, "answer", "exec")
    except SyntaxError:
        return None
    symbols = top.get_symbols()
    stubs = {node.name for node in tree.body if isinstance(node, _DEFINITION) and is_stub(node)}
    binds = {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()} - stubs
    inner_reads = frozenset(name for child in top.get_children() for name in _global_reads(child))
    outer_reads = {symbol.get_name() for symbol in symbols if symbol.is_referenced()}
    return Part(source, frozenset(binds), inner_reads | outer_reads, inner_reads)


def is_stub(node: ast.AST) -> bool:
    """Is it a function whose body is a docstring, `...`, `pass` or words that happen to parse? Models repeat the header so."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and all(
        isinstance(inner, ast.Pass)
        or (isinstance(inner, ast.Expr) and not any(isinstance(deep, ast.Call | ast.Yield | ast.Await) for deep in ast.walk(inner)))
        for inner in node.body
    )


def _global_reads(table: symtable.SymbolTable) -> Iterator[str]:
    yield from (symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced() and symbol.is_global())
    for child in table.get_children():
        yield from _global_reads(child)


def names_read(source: str) -> set[str]:
    """The names that a program needs from elsewhere: read in it, not bound by it, and not Python's own."""
    part = _part(source)
    return set() if part is None else set(part.reads - part.binds) - set(dir(builtins))


def names_bound(source: str) -> set[str]:
    """The names at the top level of a program."""
    part = _part(source)
    return set() if part is None else set(part.binds)


def _needed(parts: list[Part], wanted: list[str], given: set[str]) -> list[Part]:
    """In the order of the answer. Empty where none of the names wanted is defined."""
    chosen: set[int] = set()
    missing, seen = list(wanted), set(given)
    while missing:
        name = missing.pop()
        # The first: what follows is mostly a variant of it, or shows how to use it.
        number = next((i for i, part in enumerate(parts) if name in part.binds), None)
        if number is not None and number not in chosen:
            chosen.add(number)
            new = parts[number].reads - parts[number].binds - seen
            seen |= new
            missing.extend(new)
    if not chosen:
        return []
    # Nobody can tell what it defines.
    stars = {i for i, part in enumerate(parts) if re.search(r"^from \S+ import \*", part.source, re.MULTILINE)}
    return [parts[i] for i in sorted(chosen | stars)]


# What only tries the program out -------------------------------------------------------------------------------------

_TRYING = frozenset({"input", "print", "exit", "quit", "main", "testmod"})


def _without_trials(part: Part, wanted: list[str]) -> str:
    """Without the statements after the first definition that assert, print or ask for input, or call a function that does.

    An example that is wrong, or waits for input, would fail a function that is right. What binds a name that is read stays.
    """
    tree = ast.parse(part.source)
    definitions = [node for node in tree.body if isinstance(node, _DEFINITION)]
    trying = _TRYING | {node.name for node in definitions if _tries(node, _TRYING)}
    read = part.inner_reads | {*wanted}
    begun = tree.body.index(definitions[0]) if definitions else len(tree.body)
    kept = [
        node
        for number, node in enumerate(tree.body)
        if number < begun or isinstance(node, _DEFINITION) or not _tries(node, trying) or _binds(node) & read
    ]
    return part.source if len(kept) == len(tree.body) else ast.unparse(ast.Module(kept, []))


def _tries(node: ast.AST, trying: frozenset[str] | set[str]) -> bool:
    called = {deep.func for deep in ast.walk(node) if isinstance(deep, ast.Call)}
    names = {getattr(function, "id", None) or getattr(function, "attr", None) for function in called}
    return bool(names & trying) or any(isinstance(deep, ast.Assert) for deep in ast.walk(node))


def _binds(node: ast.AST) -> set[str]:
    return {deep.id for deep in ast.walk(node) if isinstance(deep, ast.Name) and isinstance(deep.ctx, ast.Store)}
