"""Reports of the running command: its command line in them, and the order of writing and showing them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec
from click.core import ParameterSource

from clipmlu.file_names import name_from_path

if TYPE_CHECKING:
    from clipmlu.backends.provenance import Command

Report = TypeVar("Report", bound=msgspec.Struct)


def given_command() -> Command:
    """Return the words of the running command, and the environment variables that set an option of it."""
    from clipmlu.backends.provenance import Command

    context = click.get_current_context()
    words: tuple[str, ...] = context.obj
    from_environment = (
        parameter.envvar
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is ParameterSource.ENVIRONMENT
    )
    return Command(
        arguments=("clipmlu", *map(name_from_path, words)),
        environment={name: name_from_path(os.environ[name]) for name in from_environment if isinstance(name, str)},
    )


def recorded(report: Report) -> Report:
    """Return a report with the running command in its field ``command``."""
    return msgspec.structs.replace(report, command=given_command())


@contextlib.contextmanager
def shown_after(show: Callable[[], object]) -> Iterator[None]:
    """Print a result after the body has written its files, and also if that fails.

    A reader of the output that ends early, as in ``clipmlu eval BUNDLE --output FILE | head``, then takes no file away, and a
    disk that is full no result.

    Args:
        show: prints the result.
    """
    try:
        yield
    finally:
        show()
