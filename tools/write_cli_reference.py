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
    title = (
        "<!-- Written by `python tools/write_cli_reference.py`; do not edit. -->\n\n# Command line\n\n"
        "See also [environment variables](reference/environment.md) and [exit codes](reference/exit-codes.md).\n"
    )
    return "\n".join([title, *map(_section, contexts), _COMPLETION])


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


def _section(context: click.Context) -> str:
    return f"## {context.command_path}\n\n```text\n{context.command.get_help(context).rstrip()}\n```\n"


def render_files() -> dict[Path, str]:
    """Return the text of each file that this tool writes."""
    return {PATH: render_reference()}


if __name__ == "__main__":
    for path, text in render_files().items():
        path.write_text(text, encoding="utf-8")
