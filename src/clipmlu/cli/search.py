"""``clipmlu search``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from clipmlu.cli._help import command
from clipmlu.cli._notes import note, warn
from clipmlu.cli._options import (
    PATH,
    Integer,
    comma_separated,
    device_option,
    json_option,
    overwrite_option,
    threads_option,
)
from clipmlu.cli._progress import STEPS
from clipmlu.errors import OptionError
from clipmlu.file_names import name_from_path


@command(
    "search",
    short_help="Find images by texts and images.",
    examples=(
        'clipmlu search embeddings/ "a red circle" -k 3',
        "clipmlu search embeddings/ photos/0.png --exclude 0.png",
        'clipmlu search embeddings/ photos/0.png "a blue square" --weights 1,2',
        'clipmlu search embeddings/ "a red circle" --html found.html',
    ),
)
@click.argument("index", type=PATH)
@click.argument("queries", nargs=-1, metavar="QUERY...")
@click.option("--text", multiple=True, help="A query that is a text, even if it looks like a file; may be repeated.")
@click.option("--image", type=PATH, multiple=True, help="A query that is an image file; may be repeated.")
@click.option("--queries-from", type=PATH, metavar="FILE", help="A file of more queries, one per line.")
@click.option("-k", "--top-k", type=Integer(min=1), default=10, show_default=True, help="Images per query.")
@click.option("--combine", is_flag=True, help="Make one query of all: the sum of their unit vectors.")
@click.option("--weights", metavar="W,W,...", help="Combine with a weight for each query, such as 1,-0.5.")
@click.option("--include", multiple=True, metavar="GLOB", help="Only images whose name matches; may be repeated.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="No images whose name matches; may be repeated.")
@click.option("--exact", is_flag=True, help="Search all rows, also if there is an approximate index.")
@click.option(
    "--html", type=PATH, metavar="FILE", help="Write a contact sheet: small pictures of the images, in one file."
)
@overwrite_option
@click.option(
    "--images-folder", type=PATH, metavar="DIR", help="Where relative names of images begin, if they were moved."
)
@click.option("--bundle", type=PATH, help="Bundle that embeds the queries. [default: that of the index]")
@threads_option
@device_option
@json_option
def search_command(index: Path, as_json: bool, weights: str | None, **given: Any) -> None:
    """Find the images in INDEX that are most similar to each QUERY, a text or the path of an image.

    INDEX is the folder of 'clipmlu index', or of its job. The model is that of the index. A QUERY that looks like a file and does
    not exist is an error. Images given as GLOB: '*' also stands for '/', and a pattern without '/' may match the last part of
    a name.
    """
    from clipmlu.api.searching import SearchKeywords, search_index
    from clipmlu.keywords import pick_keywords
    from clipmlu.report.search import show_hits

    keywords = pick_keywords({**given, "weights": _numbers(weights)}, SearchKeywords)
    results = search_index(index, given["queries"], on_note=warn, on_step=STEPS, **keywords)
    show_hits(results, as_json=as_json)
    if given["html"] is not None:
        note(f"Wrote {name_from_path(given['html'])}")


def _numbers(weights: str | None) -> list[float] | None:
    if weights is None:
        return None
    try:
        return [float(text) for text in comma_separated(weights)]
    except ValueError:
        raise OptionError(f"--weights is '{weights}'; expected a number for each query, such as 1,-0.5") from None
