"""Write docs/cli.md from the help texts of the commands: python tools/write_cli_reference.py."""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli import cli

PATH = Path(__file__).resolve().parent.parent / "docs" / "cli.md"
WIDTH = 100


def render_reference() -> str:
    """Return the whole page: the help of the group and of every command."""
    sizes = {"terminal_width": WIDTH, "max_content_width": WIDTH, "color": False}
    top = cli.make_context("clipmlu", [], resilient_parsing=True, **sizes)
    contexts = [top]
    for name, command in sorted(cli.commands.items()):
        contexts.append(click.Context(command, info_name=name, parent=top, **sizes))
    title = "# Command line\n\nWritten by `python tools/write_cli_reference.py`; do not edit.\n"
    return "\n".join([title, *map(_section, contexts), _variables(contexts), _COMPLETION])


def _variables(contexts: list[click.Context]) -> str:
    """Return the table of the environment variables that are defaults of options."""
    rows: dict[str, tuple[str, list[str]]] = {}
    for context in contexts:
        for parameter in context.command.params:
            if isinstance(parameter, click.Option) and isinstance(parameter.envvar, str):
                rows.setdefault(parameter.envvar, (parameter.opts[0], []))[1].append(str(context.info_name))
    lines = [f"| `{name}` | `{option}` | {', '.join(users)} |" for name, (option, users) in sorted(rows.items())]
    return "\n".join([_VARIABLES, *lines, ""])


_COMPLETION = """\
## Completion

The shell completes commands, options, targets, precisions, models, tags, datasets and sets of templates after one of
these lines, in the file that the shell reads at its start:

```text
eval "$(_CLIPMLU_COMPLETE=bash_source clipmlu)"           # ~/.bashrc
eval "$(_CLIPMLU_COMPLETE=zsh_source clipmlu)"            # ~/.zshrc
_CLIPMLU_COMPLETE=fish_source clipmlu | source            # ~/.config/fish/config.fish
```
"""

_VARIABLES = """\
## Environment variables

A variable is the default of an option: an option on the command line replaces it, it excludes no other option, and an
empty one counts as not set. A flag is set by 1, true, yes or on.

| variable | option | commands |
|---|---|---|"""


def _section(context: click.Context) -> str:
    return f"## {context.command_path}\n\n```text\n{context.command.get_help(context).rstrip()}\n```\n"


if __name__ == "__main__":
    PATH.parent.mkdir(exist_ok=True)
    PATH.write_text(render_reference(), encoding="utf-8")
