"""``clipmlu serve``."""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import note
from clipmlu.cli._options import PATH, Integer, RunningOptions, running_options


@command(
    "serve",
    short_help="Serve bundles over HTTP.",
    examples=(
        'clipmlu serve demo-cpu --labels "red circle,blue square"',
        "clipmlu serve b32-cpu mine=other-cpu --port 9000",
    ),
)
@click.argument("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@click.option("--labels", metavar="FILE|LIST", help="Classes of requests that give none: a file, or a list: 'cat,dog'.")
@click.option("--index", type=PATH, metavar="DIR", help="Index that /v1/search searches.")
@click.option("--host", default="127.0.0.1", show_default=True, metavar="ADDRESS", help="Address to listen on.")
@click.option("--port", type=Integer(0, 65535), default=8000, show_default=True, help="Port; 0 for any free one.")
@running_options
def serve_command(
    bundles: tuple[str, ...], labels: str | None, index: Path | None, host: str, port: int, running: RunningOptions
) -> int:
    """Serve compiled bundles over HTTP until Ctrl-C or SIGTERM.

    A BUNDLE is a folder, whose name requests use; NAME=BUNDLE gives it another name.
    """
    import dataclasses

    from clipmlu.api.serving import run_server

    run_server(
        dict(_named(each) for each in bundles),
        labels=labels,
        index=index,
        host=host,
        port=port,
        on_listen=lambda url: note(f"Serving on {url}"),
        **dataclasses.asdict(running),
    )
    return 0


def _named(given: str) -> tuple[str, Path]:
    name, equals, path = given.partition("=")
    return (name, Path(path)) if equals else (Path(given).resolve().name, Path(given))
