"""The options that every command has."""

from __future__ import annotations

from collections.abc import Callable

import click

from clipmlu._version import __version__
from clipmlu.cli._groups import HeadedOption
from clipmlu.cli._notes import Verbosity, set_verbosity

GENERAL = "General"
"""Heading of these options in help texts."""


def common_options() -> list[click.Option]:
    """Return new options ``-q``, ``-v`` and ``--version``."""
    return [
        _verbosity_option(("-q", "--quiet"), Verbosity.QUIET, "Print results, warnings and errors only."),
        _verbosity_option(("-v", "--verbose"), Verbosity.VERBOSE, "Print all facts and notes."),
        _eager_flag(("--version",), _show_version, "Show the version and exit."),
    ]


def _verbosity_option(names: tuple[str, ...], verbosity: Verbosity, help_text: str) -> click.Option:
    return _eager_flag(names, lambda _context: set_verbosity(verbosity), help_text)


def _eager_flag(names: tuple[str, ...], act: Callable[[click.Context], object], help_text: str) -> click.Option:
    def called(context: click.Context, _option: click.Parameter, given: bool) -> None:
        if given and not context.resilient_parsing:
            act(context)

    return HeadedOption(
        names, heading=GENERAL, is_flag=True, expose_value=False, is_eager=True, callback=called, help=help_text
    )


def _show_version(context: click.Context) -> None:
    click.echo(f"clipmlu {__version__}")
    context.exit()
