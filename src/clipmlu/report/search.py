"""What was done to an index, and what a search found, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipmlu.display import EMULATED_MARK, counted
from clipmlu.report.tables import echo_json, figures, print_facts, print_sentences, print_table, words
from clipmlu.report.wrapping import Whole

if TYPE_CHECKING:
    from clipmlu.index.manifest import ApproximateRecord
    from clipmlu.index.report import IndexReport
    from clipmlu.index.search import QueryHits, SearchResults


def show_index(report: IndexReport, *, as_json: bool) -> None:
    """Print what ``clipmlu index`` did on stdout."""
    if as_json:
        echo_json(report)
    else:
        print_facts(_index_facts(report))


def _index_facts(report: IndexReport) -> Iterator[tuple[str, str]]:
    mark = EMULATED_MARK if report.emulated else ""
    yield "index", Whole(report.path)
    yield "rows", f"{report.rows:,} of {report.embedding_dim} {report.dtype}, from {report.sources} source(s){mark}"
    counts = {"new": report.added, "changed": report.changed, "removed": report.removed, "unchanged": report.kept}
    yield "shards", ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "none"
    if report.approximate is not None:
        yield "approximate", _describe_recall(report.approximate)
    if report.left_out:
        yield "left out", f"{counted(report.left_out, 'row')} without an embedding"
    if report.normalised:
        yield "normalised", f"{counted(report.normalised, 'row')} not of unit norm"


def _describe_recall(record: ApproximateRecord) -> str:
    found = f"finds {record.recall:.1%} of the 10 best rows for {record.queries} held images"
    if record.text_recall is not None:
        found += f", {record.text_recall:.1%} for texts"
    return f"{found}; a query searches {record.probes:,} of {record.lists:,} clusters"


def show_hits(results: SearchResults, *, as_json: bool) -> None:
    """Print the hits of each query on stdout."""
    if as_json:
        echo_json(results.to_dict())
        return
    for each in results.queries:
        print_query(each, emulated=results.emulated)
    if results.recall is not None:
        print_sentences([f"approximate: {results.recall:.1%} of the 10 best rows are found; --exact searches all"])


def print_query(found: QueryHits, *, emulated: bool) -> None:
    """Print the hits of one query as a table."""
    title = f"{found.kind}: {found.query}{EMULATED_MARK if emulated else ''}"
    if not found.hits:
        print_sentences([f"{title}: no image was found"])
        return
    rows = [(str(rank), f"{hit.score:.4f}", Whole(hit.id)) for rank, hit in enumerate(found.hits, start=1)]
    print_table((*figures("rank", "score"), *words("image")), rows, title=title)
