"""The contact sheet of a search: one HTML file with small pictures of the images that were found."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from clipmlu._version import __version__
from clipmlu.data.containers.named import find_by_name
from clipmlu.data.images import ImageSource, load_image
from clipmlu.errors import ClipmluError, first_line
from clipmlu.report.html.pages import check_renderable, render
from clipmlu.report.html.pictures import THUMBNAIL_EDGE, thumbnail_address
from clipmlu.steps import StartStep, no_steps

if TYPE_CHECKING:
    from clipmlu.index.opened import Hit
    from clipmlu.index.search import QueryHits, SearchResults

_PURPOSE, _EXTRA = "A contact sheet", "search"
_MAX_PIXELS = 178_956_970


def check_contact_sheet() -> None:
    """Check, before slow work begins, that contact sheets can be written.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    check_renderable(_PURPOSE, _EXTRA)


def contact_sheet(
    results: SearchResults, image_of: Callable[[Hit], ImageSource], *, on_step: StartStep = no_steps
) -> str:
    """Return the page of a search; an image that cannot be read has its reason instead of a picture.

    Args:
        results: the results.
        image_of: finds the image of a hit; see ``VectorIndex.image_of``.
        on_step: shows the pictures.

    Raises:
        MissingDependencyError: jinja2 is not installed.
    """
    count = sum(len(each.hits) for each in results.queries)
    with on_step("making thumbnails", total=count, unit="images") as step:
        queries = [_query(each, image_of, step.advance) for each in results.queries]
    return render(
        "search.html",
        purpose=_PURPOSE,
        extra=_EXTRA,
        title="Images that were found",
        emulated=results.emulated,
        generator=f"clipmlu {__version__}",
        facts=_facts(results),
        queries=queries,
    )


def _facts(results: SearchResults) -> list[tuple[str, str]]:
    summary = results.summary().facts
    how = "exact" if results.recall is None else f"approximate: {results.recall:.1%} of the 10 best are found"
    return [
        ("index", summary["index"]),
        ("images", summary["rows"]),
        ("search", how),
        ("score", "cosine similarity, -1 to 1"),
    ]


def _query(found: QueryHits, image_of: Callable[[Hit], ImageSource], on_image: Callable[[], object]) -> dict[str, Any]:
    picture = _picture(lambda: find_by_name(found.query))[0] if found.kind == "image" else ""
    hits = []
    for rank, hit in enumerate(found.hits, start=1):
        hits.append(_hit(rank, hit, _picture(functools.partial(image_of, hit))))
        on_image()
    return {"kind": found.kind, "title": found.query, "picture": picture, "hits": hits}


def _hit(rank: int, hit: Hit, found: tuple[str, str]) -> dict[str, Any]:
    picture, problem = found
    place = hit.path or hit.id
    return {
        "rank": rank, "score": f"{hit.score:.4f}", "name": hit.id, "place": place, "picture": picture, "problem": problem,
    }  # fmt: skip


def _picture(find: Callable[[], ImageSource]) -> tuple[str, str]:
    """Return the address of a small picture, and why there is none; one of the two is empty."""
    try:
        side = (THUMBNAIL_EDGE, THUMBNAIL_EDGE)
        return thumbnail_address(load_image(find(), max_pixels=_MAX_PIXELS, at_least=side)), ""
    except (ClipmluError, OSError, ValueError) as error:
        return "", first_line(error)
