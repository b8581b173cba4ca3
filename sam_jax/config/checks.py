"""Validation of config fields."""

from __future__ import annotations

import dataclasses
import math
import numbers
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Range(NamedTuple):
    """The values that a field may have: a predicate, and its description for error messages."""

    accepts: Callable[[Any], bool]
    text: str


POSITIVE = Range(lambda x: x > 0, "positive")
NOT_NEGATIVE = Range(lambda x: x >= 0, "0 or more")
SHARE = Range(lambda x: 0 <= x <= 1, "a share from 0 to 1")
POSITIVE_SHARE = Range(lambda x: 0 < x <= 1, "a share above 0, up to 1")
BELOW_ONE = Range(lambda x: 0 <= x < 1, "a share from 0 to below 1")
GIVEN = Range(lambda x: bool(x.strip()), "given, not empty")


def one_of(names: Sequence[str]) -> Range:
    """The range of a field that must be one of `names`."""
    return Range(lambda x: x in names, f"one of {', '.join(names)}")


def require(condition: bool, message: str) -> None:
    """Raises ValueError with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def check_fields(config: Any, what: str = "", /, **ranges: Range) -> None:
    """Checks each field of a config dataclass against its annotation and, where one is given, its range.

    Args:
      what: prefix of the field's name in messages: "stage" gives "stage image_size must be ...".
      ranges: by field name. Every element of a tuple must lie in the range; None, where the annotation allows it, is
        always accepted.

    Raises:
      ValueError: one line that names the field, its value and what was expected.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), hints[field.name]
        name = f"{what} {field.name}" if what else field.name
        require(_fits(value, kind), f"{name} must be {_words(kind)}, not {value!r}")
        if (limits := ranges.get(field.name)) and value is not None:
            good = all(map(limits.accepts, value)) if isinstance(value, tuple) else limits.accepts(value)
            require(good, f"{name} must be {limits.text}, not {value!r}")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value matches an annotation. Integers pass as floats; NaN and infinity do not."""
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, part) for part in arguments)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[1:] == (...,):
            return all(_fits(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    if kind in (int, float):
        wanted = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, wanted) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _words(kind: Any) -> str:
    """An annotation in words, for messages: "a whole number", "a tuple of 3, each a number"."""
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return " or ".join(_words(part) for part in arguments)
    if typing.get_origin(kind) is tuple:
        count = "a tuple" if arguments[1:] == (...,) else f"a tuple of {len(arguments)}"
        return f"{count}, each {_words(arguments[0])}"
    known = {int: "a whole number", float: "a number", bool: "True or False", str: "text", type(None): "None"}
    return known.get(kind, getattr(kind, "__name__", str(kind)))
