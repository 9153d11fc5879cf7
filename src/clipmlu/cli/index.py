"""``clipmlu index``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import warn
from clipmlu.cli._options import PATH, Choice, Number, json_option
from clipmlu.cli._progress import STEPS


@command(
    "index",
    short_help="Make or update an index of embeddings to search.",
    examples=(
        "clipmlu index embeddings/",
        "clipmlu index embeddings/ more.npy -o all.index --bundle demo-cpu",
    ),
)
@click.argument("sources", nargs=-1, type=PATH, metavar="SOURCE...")
@click.option("-o", "--output", type=PATH, help="Folder of the index. [default: DIR/index, or NAME.index of NAME.npy]")
@click.option("--bundle", type=PATH, help="Bundle that embeds queries. [default: that of the job]")
@click.option(
    "--dtype",
    type=Choice(["float32", "float16"]),
    help="Of the rows; float16 needs half the disk and several times the time. [default: float32]",
)
@click.option(
    "--approximate", is_flag=True, help="Make an approximate index, too, which searches then use (faiss-cpu)."
)
@click.option(
    "--recall",
    type=Number(min=0, min_open=True, max=1),
    help="Share of the 10 best rows that it must find. [default: 0.95]",
)
@click.option("--overwrite", is_flag=True, help="Make the index anew, of the given sources only.")
@click.option("--verify", is_flag=True, help="Compare all digests, also of shards that are in the index.")
@json_option
def index_command(
    sources: tuple[Path, ...],
    output: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Make an index of the embeddings in SOURCE, for 'clipmlu search': folders of jobs, and .npy files, of 'clipmlu embed'.

    The same command again takes new and changed shards into the index, and removes those that are gone; other sources of
    the index stay in it. Without SOURCE, the index in -o is updated from the sources that it has. An index is a copy: it may
    be moved, and the job may be removed.
    """
    from clipmlu.api.searching import IndexKeywords, build_index
    from clipmlu.keywords import pick_keywords
    from clipmlu.report.search import show_index

    report = build_index(sources, output, on_note=warn, on_step=STEPS, **pick_keywords(given, IndexKeywords))
    show_index(report, as_json=as_json)
