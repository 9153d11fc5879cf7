"""Searching an index by texts and images: the model that embeds them, and the results."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipmlu.bundle.directory import open_compiled
from clipmlu.bundle.space import space_of
from clipmlu.display import Displayed, Summary, as_plain, shorten
from clipmlu.errors import BundleError, InputError
from clipmlu.file_names import name_from_path, path_from_name
from clipmlu.index.opened import Hit, VectorIndex
from clipmlu.index.queries import Kind, Query, combine_queries, embed_queries
from clipmlu.model import Model, load

DEFAULT_K = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class QueryHits:
    """The images that a query found.

    Attributes:
        query: the text, or the name of the image.
        kind: what the query is.
        hits: best first.
    """

    query: str
    kind: Kind
    hits: tuple[Hit, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class SearchResults(Displayed):
    """The results of ``search_index``.

    Attributes:
        index: folder of the index.
        rows: rows of the index.
        bundle: the bundle that embedded the queries.
        queries: one for each query, or one for all that were combined.
        recall: share of the 10 best rows that the approximate index was measured to find; None if all rows were searched.
        emulated: the emulated vendor SDK computed rows or queries.
    """

    index: Path
    rows: int
    bundle: Path
    queries: tuple[QueryHits, ...]
    recall: float | None
    emulated: bool

    def summary(self) -> Summary:
        """Return the facts that people see."""
        facts = {
            "index": name_from_path(self.index),
            "rows": f"{self.rows:,}",
            "queries": ", ".join(shorten(each.query, 30) for each in self.queries),
            "hits": f"{sum(len(each.hits) for each in self.queries):,}",
        }
        return Summary(facts, self.emulated)

    def records(self) -> list[dict[str, Any]]:
        """Return one row for each hit."""
        return [
            {"query": each.query, "rank": rank, "id": hit.id, "score": hit.score, "row": hit.row}
            for each in self.queries
            for rank, hit in enumerate(each.hits, start=1)
        ]

    def columns(self) -> list[str]:
        """Return the columns of a data frame without hits."""
        return ["query", "rank", "id", "score", "row"]

    def html_records(self) -> Sequence[Mapping[str, Any]]:
        """Return the rows that a notebook shows."""
        return self.records()

    def to_dict(self) -> dict[str, Any]:
        """Return the results as a dict for JSON."""
        plain: dict[str, Any] = as_plain(self)
        return plain


def check_space(model: Model, index: VectorIndex) -> None:
    """Check that a model embeds into the space of an index.

    Raises:
        InputError: it does not.
    """
    known, facts = index.manifest.space, model.runnable.facts
    name = f"Bundle '{model.runnable.path}' holds '{facts.model}'"
    if known is not None and space_of(facts) != known:
        raise InputError(
            f"{name}; the index '{name_from_path(index.path)}' holds embeddings of another model, '{known.model}'. Give a bundle "
            "that was compiled from that one with --bundle."
        )
    if facts.embedding_dim != index.embedding_dim:
        raise InputError(
            f"{name}, which gives vectors of {facts.embedding_dim}; the index '{name_from_path(index.path)}' has vectors of "
            f"{index.embedding_dim}. Give the bundle that computed them with --bundle."
        )


@contextlib.contextmanager
def open_model(
    index: VectorIndex, bundle: Path | Model | None, *, image_only: bool, threads: int = 0, device: int | None = None
) -> Iterator[Model]:
    """Yield the model that embeds queries; one that was given stays open.

    Args:
        index: the index.
        bundle: directory of a bundle, or an open model; None for the bundle of the index.
        image_only: as for ``load``.
        threads: as for ``load``.
        device: as for ``load``.

    Raises:
        InputError: the index does not say its bundle, or the bundle holds another model.
        BundleError: there is no bundle at the path.
    """
    if isinstance(bundle, Model):
        check_space(bundle, index)
        yield bundle
        return
    with load(_bundle_path(index, bundle), threads=threads, device=device, image_only=image_only) as model:
        check_space(model, index)
        yield model


def _bundle_path(index: VectorIndex, given: Path | None) -> Path:
    if given is not None:
        return given
    stored = index.manifest.bundle
    if stored is None:
        raise InputError(
            f"Index '{name_from_path(index.path)}' does not say which model computed it. Give its bundle with --bundle."
        )
    path = path_from_name(stored)
    try:
        open_compiled(path, verify=False)
    except BundleError as error:
        raise InputError(
            f"The bundle of the index '{name_from_path(index.path)}' cannot be opened: {error} If it was moved, give its path with "
            "--bundle."
        ) from error
    return path


def search(
    index: VectorIndex,
    queries: Sequence[Query],
    model: Model,
    *,
    k: int = DEFAULT_K,
    combine: bool = False,
    weights: Sequence[float] | None = None,
    include: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    exact: bool = False,
) -> SearchResults:
    """Search an index by queries; see ``clipmlu.search_index``."""
    embedded = embed_queries(model, queries)
    if combine or weights is not None:
        embedded = combine_queries(embedded, weights)
    found = index.search(embedded.vectors, k, include=include, exclude=exclude, exact=exact)
    return SearchResults(
        index=index.path,
        rows=index.rows,
        bundle=model.runnable.path,
        queries=tuple(
            QueryHits(query=name, kind=kind, hits=hits)
            for name, kind, hits in zip(embedded.names, embedded.kinds, found, strict=True)
        ),
        recall=index.recall_of(include, exclude, exact=exact),
        emulated=index.emulated or model.runnable.compilation.emulated,
    )
