"""JSON as records: what has another kind than its field gets one sentence that says where."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST = 2**63  # bound on whole numbers; counts and shapes are far below
DEEPEST = 50  # levels of lists and objects; ours have six


def parsed(text: str, what: str) -> Any:
    """Return the data of a JSON text.

    Args:
        text: The text.
        what: Its name in messages, such as "plan".

    Raises:
        ValueError: If it is no JSON.
        TypeError: If it is no text.
    """
    if not isinstance(text, (str, bytes, bytearray)):
        raise TypeError(f"the {what} is {type(text).__name__}; it must be the text of its JSON")
    try:
        data = json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {what} is no JSON: {error}") from error
    level = [data]
    for _ in range(DEEPEST):
        level = [item for value in level if isinstance(value, (dict, list)) for item in _items(value)]
    if level:
        raise ValueError(f"the {what} is none of ours: its JSON is nested more than {DEEPEST} deep")
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the dict of an object, whose keys must differ: of two rows of one layer nobody can tell which is meant."""
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!a} is there twice in one object")
    return data


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value


def read(kind: Any, value: Any, where: str) -> Any:
    """Return a value of JSON as a type wants it: a record of a dict, a tuple of a list; fields not known are left out.

    Args:
        kind: The type: of a record (a dataclass), or as its fields are annotated.
        value: The value.
        where: What it is, in messages.

    Raises:
        ValueError: If it is of another kind; the text says where.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _any_of(inner, value, where)
    if is_dataclass(kind):
        return _record(kind, value, where)
    if origin is Literal:
        return _told(value, isinstance(value, str) and value in inner, where, f"one of {', '.join(map(repr, inner))}")
    if origin is tuple:
        _told(value, isinstance(value, (list, tuple)), where, "a list")
        kinds = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        _told(value, len(value) == len(kinds), where, f"a list of {len(kinds)}")
        return tuple(read(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(kinds, value, strict=True)))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        _told(value, isinstance(value, dict), where, "an object")
        return {key: read(inner[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    return _plain(kind, value, where)


def _plain(kind: Any, value: Any, where: str) -> Any:
    """Return a number, a string, a truth value or None; a float may be whole, and true is no number."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    if kind is int:
        return _told(value, whole, where, "a whole number below 2^63")
    if kind is float:
        return _told(value, whole or isinstance(value, float), where, "a number")
    named = {str: "a string", bool: "true or false", type(None): "null"}
    return _told(value, isinstance(value, kind), where, named[kind])


def _any_of(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[:-1]:
        try:
            return read(kind, value, where)
        except ValueError:
            continue
    return read(kinds[-1], value, where)


def _record(kind: Any, value: Any, where: str) -> Any:
    _told(value, isinstance(value, dict), where, "an object")
    hints, values = _hints(kind), {}
    for field in fields(kind):
        if field.name in value:
            values[field.name] = read(hints[field.name], value[field.name], f"{where}.{field.name}".removeprefix("."))
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where or 'it'} has no {field.name!r}")
    return kind(**values)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _told(value: Any, right: bool, where: str, wanted: str) -> Any:
    """Return the value if it is right.

    Raises:
        ValueError: If it is not; a long value is cut.
    """
    if not right:
        shown = ascii(value)
        raise ValueError(f"{where or 'it'} is {shown if len(shown) <= 40 else shown[:37] + '...'}; it must be {wanted}")
    return value
