"""Help texts: options under headings, examples, and commands grouped by what people do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from click.core import ParameterSource

from clipmlu.cli._common import GENERAL, common_options
from clipmlu.errors import ClipmluError

_OPTIONS = "Options"


class ExampleCommand(click.Command):
    """A command whose help text groups its options and ends with examples.

    Args:
        examples: complete command lines.
        attributes: as for ``click.Command``.
    """

    def __init__(self, *arguments: Any, examples: Sequence[str], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.context_settings.setdefault("help_option_names", ["-h", "--help"])  # click keeps those of the first call
        self.examples = tuple(examples)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error about a value of an environment variable names the variable."""
        try:
            return super().invoke(ctx)
        except ClipmluError as error:
            for parameter in self.params:
                value = ctx.params.get(parameter.name or "")
                if ctx.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT and re.search(
                    rf"(?<!\w){re.escape(str(value))}(?!\w)", str(error)
                ):
                    error.args = (
                        f"{str(error).rstrip('.')}. '{value}' is the value of the environment variable {parameter.envvar}.",
                    )
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, a section for each heading."""
        sections: dict[str, list[tuple[str, str]]] = {_OPTIONS: []}
        general = self.get_help_option(ctx)
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                heading = GENERAL if parameter is general else getattr(parameter, "heading", None)
                sections.setdefault(heading or _OPTIONS, []).append(record)
        last = sections.pop(GENERAL, [])
        if len(sections) == 1:
            sections[_OPTIONS] += last
        else:
            sections[GENERAL] = last
        for heading, records in sections.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl(records)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")


class GroupedCommands(ExampleCommand, click.Group):
    """Commands in sections; the options that every command has may stand before and after a command's name."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += common_options()
        self.sections: dict[str, tuple[str, ...]] = {}

    def add_section(self, heading: str, commands: Iterable[click.Command]) -> None:
        """Add commands that the help text lists under a heading, in this order."""
        added = tuple(commands)
        for command in added:
            command.params += common_options()
            self.add_command(command)
        self.sections[heading] = tuple(str(command.name) for command in added)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options and the commands."""
        super().format_options(ctx, formatter)
        self.format_commands(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, a section for each heading, with names of equal width."""
        width = max(map(len, self.commands))
        limit = formatter.width - 6 - width
        for heading, names in self.sections.items():
            with formatter.section(heading):
                rows = [(f"{name:{width}}", self.commands[name].get_short_help_str(limit)) for name in names]
                formatter.write_dl(rows)


def command(
    name: str, *, examples: Sequence[str], kind: type[ExampleCommand] = ExampleCommand, **attributes: Any
) -> Callable[[Callable[..., Any]], click.Command]:
    """Return the decorator that makes a function a command.

    Args:
        name: name of the command.
        examples: complete command lines for the help text; ``tests/cli/test_help.py`` runs them.
        kind: class of the command.
        attributes: as for ``click.command``.
    """
    return click.command(name, cls=kind, examples=examples, **attributes)
