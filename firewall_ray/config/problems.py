"""One line for each thing that is wrong with a config: the key's path as the user wrote it, what is wrong, the nearest right key.

pydantic's path of an error has parts that the file does not: the arm of a union, such as the engine of a model. They are told
apart by the fields' types along the path and never by their names, since a model may well be called `openai`.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from firewall_ray.config.base import Hidden


class _Place(NamedTuple):
    """path: as in the file. known: the keys that exist there, where it is a section. hidden: what was given is not repeated."""

    path: list[str]
    known: list[str]
    hidden: bool


def problem(model: type[BaseModel], error: Mapping[str, Any]) -> str:
    """The line for one of `ValidationError.errors()` of this model."""
    location = error["loc"]
    if error["type"] == "extra_forbidden":
        section = _place(model, location[:-1])
        path = ".".join([*section.path, str(location[-1])])
        nearest = difflib.get_close_matches(str(location[-1]), section.known, n=1, cutoff=0.5)
        right = ".".join([*section.path, *nearest])
        hint = f"did you mean {right}?" if nearest else f"known here: {', '.join(sorted(section.known))}"
        return f"  {path}: unknown key; {hint}"
    place = _place(model, location)
    where = ".".join(place.path) or "the file"
    if error["type"] == "missing":
        return f"  {where}: missing, and it has no default"
    value = error.get("input")
    # A section's content is not repeated either: a field within may be hidden.
    is_shown = not place.hidden and (not isinstance(value, Mapping | Sequence | BaseModel) or isinstance(value, str) or not value)
    return f"  {where}: {error['msg'].removeprefix('Value error, ')}{f' (given: {value!r})' if is_shown else ''}"


def _place(model: type[BaseModel], location: Sequence[str | int]) -> _Place:
    path: list[str] = []
    # Down the path part by part: `current` is the type there, None once the path leaves what is known.
    current, hidden = _opened(model)
    for part in location:
        arms = _arms(current)
        if arms:  # this part says which
            current, is_hidden = _opened(_arm(arms, str(part)))
        elif isinstance(current, type) and issubclass(current, BaseModel):
            path.append(str(part))
            field = current.model_fields.get(str(part))
            current, is_hidden = _opened(field)
        else:
            if part == "[key]":  # of the name before it
                continue
            path.append(str(part))
            # Of dict[K, V] the value, of list[V] the item.
            values = get_args(current)
            current, is_hidden = _opened(values[-1] if values else None)
        # What lies within a hidden field is hidden too.
        hidden = hidden or is_hidden
    known = list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []
    return _Place(path, known, hidden)


def _opened(annotation: Any) -> tuple[Any, bool]:
    """The type within `Annotated` and `| None`, and whether one of them marks it as hidden."""
    hidden = False
    if isinstance(annotation, FieldInfo):
        hidden = any(isinstance(mark, Hidden) for mark in annotation.metadata)
        annotation = annotation.annotation
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *marks = get_args(annotation)
            hidden = hidden or any(isinstance(mark, Hidden) for mark in marks)
        elif len(arms := _without_none(annotation)) == 1 and arms != [annotation]:
            (annotation,) = arms
        else:
            return annotation, hidden


def _without_none(annotation: Any) -> list[Any]:
    # `A | B` is a types.UnionType, Optional[A] a typing.Union.
    is_union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return [arm for arm in get_args(annotation) if arm is not type(None)] if is_union else [annotation]


def _arms(annotation: Any) -> list[Any]:
    """Of a union of several types; empty for anything else."""
    arms = _without_none(annotation)
    return arms if len(arms) > 1 else []


def _arm(arms: Sequence[Any], label: str) -> Any:
    """The one that pydantic calls so: the value of its discriminator, its name, or its kind."""
    for arm in arms:
        opened, _ = _opened(arm)
        if isinstance(opened, type) and issubclass(opened, BaseModel):
            # A model with a discriminator is called by its Literal: "openai" for engine: Literal["openai"].
            tags = [value for field in opened.model_fields.values() for value in get_args(field.annotation)]
            if label == opened.__name__ or label in tags:
                return arm
        # Such as "list[ApiKeyConfig]" and "literal['disabled']". "\0" for a type without a name: every text ends in "".
        elif label.split("[")[0].endswith(getattr(get_origin(opened) or opened, "__name__", "").lower() or "\0"):
            return arm
    return None
