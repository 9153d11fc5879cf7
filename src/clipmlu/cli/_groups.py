"""Options as objects, and groups of options that are combined into one value."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, TypeVar

import click
from click.core import ParameterSource

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Value = TypeVar("Value")
_NEEDED = "_needed_parameters"  # attribute of a decorated command: parameter names of the command and its groups


class HeadedOption(click.Option):
    """An option that the help text shows under a heading; its environment variable is shown, and named in errors.

    Args:
        heading: the heading; None for ``Options``.
        arguments: as for ``click.Option``.
    """

    def __init__(self, *arguments: Any, heading: str | None = None, **attributes: Any) -> None:
        super().__init__(*arguments, **{"show_envvar": "envvar" in attributes, **attributes})
        self.heading = heading

    def get_error_hint(self, ctx: click.Context | None) -> str:
        """Return the option for an error message, or the environment variable if the value is from there."""
        if ctx is not None and self.name and ctx.get_parameter_source(self.name) is ParameterSource.ENVIRONMENT:
            return f"the environment variable {self.envvar}"
        return " / ".join(f"'{name}'" for name in self.opts)


def is_on_command_line(name: str) -> bool:
    """Whether an option of the running command was given as such, and not by its environment variable.

    A variable is a default: it excludes no other option, and needs none.
    """
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


class Option:
    """An option for several commands; arguments as for ``HeadedOption``.

    Attributes:
        name: name of the command's parameter.
    """

    def __init__(self, *declarations: str, **attributes: Any) -> None:
        self._declarations = declarations
        self._attributes = attributes
        self.name = str(HeadedOption(declarations, **attributes).name)

    def __call__(self, command: Decorated) -> Decorated:
        return click.option(*self._declarations, cls=HeadedOption, **self._attributes)(command)

    def under(self, heading: str) -> Option:
        """Return this option under a heading, unless it has one."""
        return Option(*self._declarations, **{"heading": heading, **self._attributes})


def under(heading: str, *options: Option) -> tuple[Option, ...]:
    """Return options that the help text shows under a heading."""
    return tuple(option.under(heading) for option in options)


class OptionGroup(Generic[Value]):
    """Options that are combined into one value; a decorated command gets the value instead of the options.

    A command that has one of the options in its signature also gets that option.

    Args:
        parameter: name of the command's parameter for the value.
        options: in the order of the help text.
        build: makes the value from the parameters of the command, by name.
        reads: names of other parameters that ``build`` uses and another decorator declares.
        heading: heading in the help text of options that have none; None for ``Options``.
    """

    def __init__(
        self,
        parameter: str,
        options: Iterable[Option],
        build: Callable[[Mapping[str, Any]], Value],
        *,
        reads: Iterable[str] = (),
        heading: str | None = None,
    ) -> None:
        self.options = tuple(options) if heading is None else under(heading, *options)
        self.build = build
        self._parameter = parameter
        self._names = {*(option.name for option in self.options), *reads}

    def __call__(self, command: Callable[..., Any]) -> Callable[..., Any]:
        needed: set[str] = getattr(command, _NEEDED, set(inspect.signature(command).parameters))

        @functools.wraps(command)
        def with_value(**parameters: Any) -> Any:
            value = self.build(parameters)
            rest = {name: given for name, given in parameters.items() if name in needed or name not in self._names}
            return command(**rest, **{self._parameter: value})

        setattr(with_value, _NEEDED, needed | self._names)
        decorated: Callable[..., Any] = with_value
        for option in reversed(self.options):
            decorated = option(decorated)
        return decorated
