"""``clipmlu report``."""

from __future__ import annotations

from pathlib import Path

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import note, warn
from clipmlu.cli._options import PATH, json_option, overwrite_option
from clipmlu.cli._progress import STEPS
from clipmlu.display import size_text
from clipmlu.report.tables import echo_json


@command(
    "report",
    short_help="Write an HTML page about what was measured.",
    examples=(
        "clipmlu report report.json -o report.html",
        "clipmlu report report.json speed.json sweep/ -o measurements.html",
    ),
)
@click.argument("inputs", metavar="FILE|FOLDER...", type=PATH, nargs=-1, required=True)
@click.option(
    "-o",
    "--output",
    type=PATH,
    default=Path("report.html"),
    show_default=True,
    help="The page; Markdown is written beside it.",
)
@click.option("--title", metavar="TEXT", help="Title of the page. [default: names the model]")
@click.option(
    "--thumbnails/--no-thumbnails",
    default=None,
    help="Show images of mistakes, if their dataset is on this machine. [default: of folders only those below the folder of "
    "a report or the current one]",
)
@overwrite_option
@json_option
def report_command(
    inputs: tuple[Path, ...], output: Path, title: str | None, thumbnails: bool | None, overwrite: bool, as_json: bool
) -> int:
    """Write one HTML page about what other commands measured.

    FILE is what eval, bench or compare wrote with --output; FOLDER is that of a run, a sweep, a bulk job or a bundle that
    'compile --max-drop' chose, or holds such files. The page needs no network and runs no script. The same is written
    as Markdown.
    """
    from clipmlu.report.write import write_report

    written = write_report(
        inputs, output, title=title, thumbnails=thumbnails, overwrite=overwrite, on_note=warn, on_step=STEPS
    )
    if as_json:
        echo_json(written)
    else:
        mark = " (emulated)" if written.emulated else ""
        click.echo(f"{written.path}{mark}")
        note(f"{written.results} result(s), {size_text(written.size_bytes)}; as Markdown: {written.markdown_path}")
    return 0
