"""Write docs/cli.md from the commands themselves: python tools/write_cli_reference.py."""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli import cli

PATH = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100


def render_reference() -> str:
    """The whole page: the help of the group and of every command."""
    parts = [
        "# Command line\n\nWritten by `python tools/write_cli_reference.py`; do not edit.\n",
        _section(cli, "clipmlu"),
    ]
    parts += [_section(command, f"clipmlu {name}") for name, command in sorted(cli.commands.items())]
    return "\n".join(parts)


def _section(command: click.Command, name: str) -> str:
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH, color=False)
    return f"## {name}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(render_reference(), encoding="utf-8")
