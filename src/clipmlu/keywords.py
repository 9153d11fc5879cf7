"""Keywords of the public functions: each function has a ``TypedDict``, which checks, types and documents them."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

from clipmlu.arguments import check_argument
from clipmlu.errors import OptionError, UnknownNameError

Function = TypeVar("Function", bound=Callable[..., Any])
_ARGUMENTS: dict[str, tuple[str, ...]] = {}
"""Maps a function to its arguments beside the keywords, for suggestions."""


def check_keywords(given: Mapping[str, Any], kind: type, function: str) -> dict[str, Any]:
    """Return the keywords of a call, converted to their declared types.

    Args:
        given: keywords of the call.
        kind: the ``TypedDict`` of the function.
        function: its name, for messages.

    Raises:
        UnknownNameError: the function has no such keyword.
        OptionError: a value has another type or is out of range.
    """
    kinds = _types_of(kind)
    for name in given:
        if name not in kinds:
            known = (*_ARGUMENTS.get(function, ()), *kinds)
            raise UnknownNameError(f"argument of {function}", name, known, f"See help(clipmlu.{function}).")
    refuse_device_name(given.get("device"))
    return {name: check_argument(value, kinds[name], name.replace("_", " ")) for name, value in given.items()}


def refuse_device_name(device: object) -> None:
    """Check that a device is not a name of torch's, such as ``cuda``.

    Raises:
        OptionError: it is a text.
    """
    if isinstance(device, str):
        raise OptionError(
            f"device is {device!r}; expected the index of an MLU card, such as 0. What computes is chosen by target, such as "
            "'cpu', when a bundle is compiled"
        )


def pick_keywords(given: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return those parameters of a command that are keywords of a function and were given: not None, and not empty."""
    return {name: given[name] for name in _types_of(kind) if name in given and given[name] not in (None, ())}


def refuse_both(options: object, given: Mapping[str, Any], function: str) -> None:
    """Check that a call has either an options object or keywords.

    Raises:
        OptionError: it has both.
    """
    if options is not None and given:
        raise OptionError(
            f"{function} has an options object and the keyword '{next(iter(given))}'; expected one of them: leave the object out, "
            "or change it with dataclasses.replace"
        )


def with_keywords(*kinds: type, defaults: type | None = None) -> Callable[[Function], Function]:
    """Return a decorator that shows a function's keywords in its signature and docstring, for ``help`` and for editors.

    Args:
        kinds: the ``TypedDict`` of the function and those that it inherits from, in the order of the text.
        defaults: options class whose fields of the same names have the default values.
    """

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        fixed = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
        _ARGUMENTS[function.__name__] = tuple(each.name for each in fixed)
        named = [_parameter(name, text, defaults) for kind in kinds for name, text in _texts_of(kind).items()]
        setattr(function, "__signature__", signature.replace(parameters=[*fixed, *_different(named)]))  # noqa: B010 -- mypy
        function.__doc__ = _documented(function.__doc__, kinds)
        return function

    return decorate


class _Unset:
    """The default value of a keyword whose docstring says what happens without it."""

    def __repr__(self) -> str:
        return "..."


_UNSET = _Unset()


def _different(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return list({each.name: each for each in parameters}.values())


def _parameter(name: str, text: str, defaults: type | None) -> inspect.Parameter:
    default = getattr(defaults, name, _UNSET)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=text)


def _texts_of(kind: type) -> dict[str, str]:
    """Map each keyword to its annotation as it is written."""
    return {name: getattr(each, "__forward_arg__", str(each)) for name, each in kind.__annotations__.items()}


def _documented(text: str | None, kinds: tuple[type, ...]) -> str | None:
    """Insert the descriptions of the keywords before ``Returns:`` or ``Raises:``."""
    if text is None:  # python -OO
        return None
    text = inspect.cleandoc(text)  # from Python 3.13 on it has no indentation anyway
    described = "".join(_described(kind) for kind in kinds)
    cut = min((at for part in ("Returns:", "Raises:") if (at := text.find(f"\n{part}")) >= 0), default=len(text))
    return f"{text[:cut].rstrip()}\n\nKeywords:\n{described.rstrip()}\n{text[cut:]}"


def _described(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")[2].rstrip() + "\n"


@functools.cache
def _types_of(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)
