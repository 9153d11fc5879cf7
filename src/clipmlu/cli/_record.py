"""The command line of the running command, for the reports that it writes."""

from __future__ import annotations

import os
from typing import TypeVar

import click
import msgspec
from click.core import ParameterSource

from clipmlu.backends.provenance import Command
from clipmlu.file_names import name_from_path

Report = TypeVar("Report", bound=msgspec.Struct)


def given_command() -> Command:
    """Return the words of the running command, and the environment variables that set an option of it."""
    context = click.get_current_context()
    words: tuple[str, ...] = context.obj
    from_environment = (
        parameter.envvar
        for parameter in context.command.params
        if context.get_parameter_source(str(parameter.name)) is ParameterSource.ENVIRONMENT
    )
    return Command(
        arguments=("clipmlu", *map(name_from_path, words)),
        environment={name: os.environ[name] for name in from_environment if isinstance(name, str)},
    )


def recorded(report: Report) -> Report:
    """Return a report with the running command in its field ``command``."""
    return msgspec.structs.replace(report, command=given_command())
