"""The group of all commands, and the options that every command has."""

from __future__ import annotations

import click

from clipmlu._version import __version__
from clipmlu.cli._notes import Verbosity, set_verbosity


class RootGroup(click.Group):
    """The command ``clipmlu``; ``-q``, ``-v`` and ``--version`` may follow the name of a command, too."""

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """Add a command, with the options that every command has."""
        cmd.params += common_options()
        super().add_command(cmd, name)


def common_options() -> list[click.Parameter]:
    """Return the options that every command has, and that are also options of ``clipmlu`` itself."""
    return [
        _verbosity_option(("-q", "--quiet"), Verbosity.QUIET, "Print results, warnings and errors only."),
        _verbosity_option(("-v", "--verbose"), Verbosity.VERBOSE, "Print all facts and notes."),
        click.Option(
            ["--version"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ]


def _verbosity_option(names: tuple[str, str], verbosity: Verbosity, help_text: str) -> click.Option:
    def choose(context: click.Context, _option: click.Parameter, given: bool) -> None:
        if given and not context.resilient_parsing:
            set_verbosity(verbosity)

    return click.Option(names, is_flag=True, expose_value=False, is_eager=True, callback=choose, help=help_text)


def _show_version(context: click.Context, _option: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        click.echo(f"clipmlu {__version__}")
        context.exit()
