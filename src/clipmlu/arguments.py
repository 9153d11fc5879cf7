"""Type checks of library arguments and option fields, with an error of one line.

A value with the same meaning in another type is converted: NumPy's numbers, a list for a tuple, the text of an enum's
value.
"""

from __future__ import annotations

import enum
import functools
import math
import numbers
import os
import stat
import types
import typing
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from clipmlu.errors import InputError, OptionError, did_you_mean
from clipmlu.file_names import expand_home, name_from_path

_SHOWN_CHARACTERS = 200
_WRONG = object()
_TEXTS = (str, bytes, bytearray)
_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    type(None): "None",
    os.PathLike: "a path",
}


def as_path(path: object, what: str) -> Path:
    """Return a caller's path, with ``~`` replaced by the home folder.

    Args:
        path: a string or a path object.
        what: name of the argument, the subject of the messages.

    Raises:
        OptionError: the path has another type, is empty or holds a null character.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise OptionError(f"{what} is {shown(path)}; expected a path: a string, or a path object such as pathlib.Path")
    if not text or "\0" in text:
        raise OptionError(f"{what} is {text!r}, which is no path")
    return expand_home(text)


def is_there(path: str | os.PathLike[str], *, folder: bool = False) -> bool:
    """Return whether a caller's path exists, or is a folder; False if it is too long or holds a null character.

    Raises:
        InputError: a parent folder is not accessible, so existence cannot be determined.
    """
    try:
        mode = os.stat(path).st_mode
    except PermissionError as error:
        raise InputError(
            f"Cannot access '{name_from_path(path)}': {error.strerror}. Give another path, or ask its owner."
        ) from error
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(mode) or not folder


def check_argument(value: Any, kind: Any, what: str) -> Any:
    """Return an argument converted to its declared type.

    Args:
        value: the argument.
        kind: a type as in annotations, such as ``PositiveInt | None``.
        what: name of the argument, the subject of the message.

    Raises:
        OptionError: the value has another type, is NaN, or is outside the bounds of ``kind``.
    """
    fitted = _fit(value, kind)
    if fitted is _WRONG:
        item = _item_kind(value, kind)
        for position, each in enumerate(value if item is not None else ()):
            check_argument(each, item, f"{what}[{position}]")
        message = f"{what} is {shown(value)}; expected {_expected(value, kind)}"
        meant = next(filter(None, (did_you_mean(text, _choices(kind)) for text in _unknown_texts(value, kind))), "")
        raise OptionError(f"{message}. {meant}" if meant else message)
    return fitted


def choices_of(kind: Any) -> tuple[str, ...]:
    """Return the texts that a ``Literal`` or an enum of texts accepts, those for people first."""
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    short = getattr(kind, "short_names", dict[str, object])
    members: list[enum.Enum] = list(kind)
    return (*short(), *(str(member.value) for member in members))


def as_texts(texts: Any, what: str) -> list[str]:
    """Return one text, or several in any ordered collection, as a list.

    Raises:
        OptionError: the value or one of its elements has another type.
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, (*_TEXTS, Set, Mapping)) or not isinstance(texts, Iterable):
        raise OptionError(f"{what} are {shown(texts)}; expected a text or a list of texts")
    given = list(texts)
    for position, text in enumerate(given):
        check_argument(text, str, f"{what}[{position}]")
    return given


def check_fields(options: Any) -> None:
    """Check every field of an options dataclass, or of a frozen ``msgspec.Struct``, in its ``__post_init__``.

    Raises:
        OptionError: a field has another type than its annotation, is NaN, or is out of bounds.
    """
    for name, kind in _annotations(options.__class__).items():
        value = getattr(options, name)
        fitted = check_argument(value, kind, name.replace("_", " "))
        if fitted is not value:
            set_field = msgspec.structs.force_setattr if isinstance(options, msgspec.Struct) else object.__setattr__
            set_field(options, name, fitted)


def shown(value: object) -> str:
    """Return a value as one line for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


@functools.cache
def _annotations(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _fit(value: Any, kind: Any) -> Any:
    """Return the value converted to a type, or ``_WRONG``."""
    origin = get_origin(kind)
    if origin is not None:
        return _fit_generic(value, origin, get_args(kind))
    if kind is Any:
        return value
    if kind in (int, float):
        return _fit_number(value, kind)
    if isinstance(kind, enum.EnumMeta) and isinstance(value, str):
        try:
            return kind(value)
        except ValueError:
            return _WRONG
    return value if isinstance(value, kind) else _WRONG


def _fit_generic(value: Any, origin: Any, arguments: tuple[Any, ...]) -> Any:
    if origin is Annotated:
        fitted = _fit(value, arguments[0])
        return fitted if fitted is not _WRONG and not _outside(fitted, arguments[1:]) else _WRONG
    if origin in (typing.Union, types.UnionType):
        return next((fitted for member in arguments if (fitted := _fit(value, member)) is not _WRONG), _WRONG)
    if origin is Literal:
        return value if isinstance(value, str) and value in arguments else _WRONG
    if origin is tuple:
        return _fit_tuple(value, arguments)
    if origin is os.PathLike:
        return value if isinstance(value, os.PathLike) and isinstance(os.fspath(value), str) else _WRONG
    if not isinstance(value, origin) or isinstance(value, _TEXTS):
        return _WRONG
    if issubclass(origin, Mapping):
        fits = all(_fit(key, arguments[0]) is not _WRONG for key in value)
        return value if fits and all(_fit(each, arguments[1]) is not _WRONG for each in value.values()) else _WRONG
    if issubclass(origin, Sequence):
        return value if all(_fit(each, arguments[0]) is not _WRONG for each in value) else _WRONG
    return value


def _fit_tuple(value: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, (tuple, list)):
        return _WRONG
    kinds = (arguments[0],) * len(value) if arguments[1:] == (...,) else arguments
    if len(kinds) != len(value):
        return _WRONG
    fitted = tuple(map(_fit, value, kinds))
    if any(each is _WRONG for each in fitted):
        return _WRONG
    return value if all(map(lambda new, old: new is old, fitted, value)) and type(value) is tuple else fitted


def _fit_number(value: Any, kind: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        return _WRONG
    number: Any = value if type(value) in (int, kind) else kind(value)  # NumPy's
    return _WRONG if math.isnan(number) else number


def _outside(value: Any, metadata: tuple[Any, ...]) -> bool:
    return any(
        (bounds.ge is not None and value < bounds.ge)
        or (bounds.gt is not None and value <= bounds.gt)
        or (bounds.le is not None and value > bounds.le)
        or (bounds.lt is not None and value >= bounds.lt)
        for bounds in metadata
        if isinstance(bounds, msgspec.Meta)
    )


def _expected(value: Any, kind: Any) -> str:
    """Describe the values that a type accepts; only the bounds if only these are violated."""
    members = get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    for member in members:
        if get_origin(member) is Annotated and _fit(value, get_args(member)[0]) is not _WRONG:
            return _bounds(get_args(member)[1:])
    return " or ".join(dict.fromkeys(map(_described, members)))


def _item_kind(value: Any, kind: Any) -> Any:
    """Return the type of the items of a list, if the type accepts lists of any length and of one type; else None."""
    members = get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    lists = [get_args(each) for each in members if get_origin(each) is tuple and get_args(each)[1:] == (...,)]
    return lists[0][0] if len(lists) == 1 and isinstance(value, (tuple, list)) else None


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the texts that a type or its members name."""
    if get_origin(kind) is Literal or isinstance(kind, enum.EnumMeta):
        return choices_of(kind)
    members = get_args(kind) if get_origin(kind) in (typing.Union, types.UnionType, tuple, Annotated) else ()
    return tuple(name for member in members for name in _choices(member))


def _unknown_texts(value: Any, kind: Any) -> list[str]:
    """Return the text, or those of a list, that are none of the type's choices."""
    given = value if isinstance(value, (list, tuple)) else (value,)
    return [text for text in given if isinstance(text, str) and text not in _choices(kind)]


def _described(kind: Any) -> str:
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        bounds = _bounds(arguments[1:])
        return f"{_described(arguments[0])}, {bounds}" if bounds else _described(arguments[0])
    if origin is Literal or isinstance(kind, enum.EnumMeta):
        return "one of " + ", ".join(choices_of(kind))
    if origin is tuple:
        return (
            f"a tuple of {len(arguments)}" if arguments[1:] != (...,) else f"a tuple, each {_described(arguments[0])}"
        )
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_described, arguments)))
    if origin is Callable:
        return "a function"
    if origin is not None and origin is not os.PathLike:
        each = [_described(argument) for argument in arguments]
        return (
            f"a map, each key {each[0]}, each value {each[1]}"
            if issubclass(origin, Mapping)
            else f"a list, each {each[0]}"
        )
    known = _NAMES.get(origin or kind)
    return known if known is not None else str(getattr(kind, "__name__", kind))


def _bounds(metadata: tuple[Any, ...]) -> str:
    parts = []
    for bounds in metadata:
        if isinstance(bounds, msgspec.Meta):
            parts += [] if bounds.gt is None else [f"more than {bounds.gt}"]
            parts += [] if bounds.ge is None else [f"{bounds.ge} or more"]
            parts += [] if bounds.lt is None else [f"less than {bounds.lt}"]
            parts += [] if bounds.le is None else [f"{bounds.le} at most"]
    return ", ".join(parts)
