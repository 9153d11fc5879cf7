"""The public functions of the search by text and image: building an index, and searching it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from clipmlu.arguments import as_path, shown
from clipmlu.data.textfile import read_lines
from clipmlu.errors import OptionError
from clipmlu.files.publish import check_file_free, write_file
from clipmlu.index import build
from clipmlu.index.opened import VectorIndex, open_index
from clipmlu.index.options import IndexOptions, Recall
from clipmlu.index.queries import Given, Query, collect_queries
from clipmlu.index.report import IndexReport
from clipmlu.index.search import DEFAULT_K, SearchResults, open_model, search
from clipmlu.jobs.rows import EmbeddingDtype
from clipmlu.keywords import check_keywords, with_keywords
from clipmlu.model import Model
from clipmlu.report.html.contact_sheet import check_contact_sheet, contact_sheet
from clipmlu.specs import NaturalInt, PositiveInt
from clipmlu.steps import StartStep, no_steps

Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


class IndexKeywords(TypedDict, total=False):
    """Keywords of ``build_index``.

    Attributes:
        bundle: the compiled bundle that embeds queries; None for the one that the job names.
        dtype: dtype of the rows; None for that of an existing index, else float32. float16 needs half the disk, and its search takes
            several times as long.
        approximate: make an approximate index beside the exact one, which searches of large indices use; an index that has one keeps
            it. Needs faiss-cpu.
        recall: share of the 10 best rows that the approximate index must find; None for that of an existing one, else 0.95.
        overwrite: make the index anew, of the given sources only.
        verify: compute the digests of all files again, those of the shards and those of the index.
    """

    bundle: str | os.PathLike[str] | None
    dtype: EmbeddingDtype | None
    approximate: bool
    recall: Recall | None
    overwrite: bool
    verify: bool


class SearchKeywords(TypedDict, total=False):
    """Keywords of ``search_index``.

    Attributes:
        text: texts that are queries whatever they look like.
        image: images that are queries: paths, or images of PIL.
        queries_from: a file of more queries, one per line.
        top_k: images for each query.
        combine: make one query of all: the sum of their unit vectors, each times its weight.
        weights: one number for each query, which are combined; a negative one moves away from its query.
        include: glob patterns of names, of which an image must match one; ``*`` also stands for ``/``, and a pattern without
            ``/`` may match the last part of a name.
        exclude: glob patterns of names that are left out.
        exact: search all rows, also if there is an approximate index.
        html: write a contact sheet, one HTML file with small pictures of the images that were found.
        overwrite: replace an existing file.
        images_folder: folder to which relative names of images refer; None for that in which their job was begun.
        bundle: the bundle that embeds the queries, or an open model; None for that of the index.
        threads: CPU threads per batch; 0 lets the runtime choose.
        device: index of the MLU card; None for the first one.
    """

    text: str | Sequence[str]
    image: Given | Iterable[Given]
    queries_from: str | os.PathLike[str] | None
    top_k: PositiveInt
    combine: bool
    weights: Sequence[float] | None
    include: str | Sequence[str]
    exclude: str | Sequence[str]
    exact: bool
    html: str | os.PathLike[str] | None
    overwrite: bool
    images_folder: str | os.PathLike[str] | None
    bundle: str | os.PathLike[str] | Model | None
    threads: NaturalInt
    device: NaturalInt | None


@with_keywords(IndexKeywords, defaults=IndexOptions)
def build_index(
    sources: Sources = (),
    output: str | os.PathLike[str] | None = None,
    *,
    on_note: Callable[[str], object] = lambda _note: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[IndexKeywords],
) -> IndexReport:
    """Make an index of embeddings, or take new and changed shards into it, as ``clipmlu index`` does.

    A run that was interrupted goes on with the same call. Other sources of an existing index stay in it.

    Args:
        sources: folders of jobs and ``.npy`` files of ``clipmlu embed``; none to update an index from those that it has.
        output: folder of the index; None for ``index`` in the folder of the job, or ``NAME.index`` beside ``NAME.npy``.
        on_note: called with a line for people.
        on_step: shows the shards; see ``clipmlu.steps``.

    Returns:
        The report: what was added, changed, removed and kept.

    Raises:
        OptionError: a value is wrong, or a job stores no embeddings.
        InputError: a source is damaged, or was computed with another model.
        OutputExistsError: the output is something else than an index.
        OutputError: the index cannot be written; it is as before.
    """
    given = check_keywords(keywords, IndexKeywords, "build_index")
    paths = _paths(sources)
    folder = build.default_output(paths) if output is None else as_path(output, "the output")
    return build.build(paths, folder, IndexOptions(**given), on_note=on_note, on_step=on_step)


@with_keywords(SearchKeywords)
def search_index(
    index: str | os.PathLike[str] | VectorIndex,
    queries: Given | Iterable[Given] = (),
    *,
    on_note: Callable[[str], None] = lambda _note: None,
    on_step: StartStep = no_steps,
    **keywords: Unpack[SearchKeywords],
) -> SearchResults:
    """Find the images of an index that are most similar to texts and images, as ``clipmlu search`` does.

    To search by vectors, without a model, see ``VectorIndex.search``.

    Args:
        index: folder of an index, or of the job that it lies in; or what ``open_index`` returns.
        queries: texts and images: a text that is the path of an image file is that image, as are path objects and images of PIL.
        on_note: called with a line for people.
        on_step: shows the steps; see ``clipmlu.steps``.

    Returns:
        The images of each query, best first.

    Raises:
        OptionError: a value is wrong.
        InputError: the index is damaged, an image cannot be read, or the bundle holds another model.
        BundleError: there is no bundle at the path.
        MissingDependencyError: ``html`` needs jinja2, or the approximate index faiss-cpu.
        OutputExistsError: the contact sheet exists, and ``overwrite`` is False.
    """
    given = check_keywords(keywords, SearchKeywords, "search_index")
    sheet = None if given.get("html") is None else as_path(given["html"], "the contact sheet")
    if sheet is None and given.get("overwrite"):
        raise OptionError("overwrite is for a contact sheet; give html, too")
    if sheet is not None:
        check_contact_sheet()
        check_file_free(sheet, overwrite=given.get("overwrite", False))
    listed = given.get("queries_from")
    lines = [] if listed is None else read_lines(as_path(listed, "the list of queries"), "list of queries", on_note)
    found = collect_queries(queries, given.get("text", ()), given.get("image", ()), lines=lines, on_note=on_note)
    opened = _opened(index, given.get("images_folder"))
    with on_step("searching"):
        results = _search(opened, found, given, on_note)
    if sheet is not None:
        page = contact_sheet(results, opened.image_of, on_step=on_step).encode()
        write_file(sheet, page, overwrite=given.get("overwrite", False))
    return results


def _opened(index: str | os.PathLike[str] | VectorIndex, images_folder: str | os.PathLike[str] | None) -> VectorIndex:
    if not isinstance(index, VectorIndex):
        return open_index(index, images_folder=images_folder)
    if images_folder is not None:
        raise OptionError("images folder is given with an open index; give it to open_index")
    return index


def _search(
    index: VectorIndex, queries: Sequence[Query], given: Mapping[str, Any], on_note: Callable[[str], object]
) -> SearchResults:
    bundle = given.get("bundle")
    place = bundle if bundle is None or isinstance(bundle, Model) else as_path(bundle, "the bundle")
    image_only = all(query.kind == "image" for query in queries)
    running = {name: given[name] for name in ("threads", "device") if name in given}
    chosen = {name: given[name] for name in ("combine", "weights", "include", "exclude", "exact") if name in given}
    with open_model(index, place, image_only=image_only, **running) as model:
        texts = [query.source for query in queries if query.kind == "text"]
        if texts and (cut := model.tokenizer.count_truncated(texts)):
            on_note(f"{cut} text(s) are longer than the context of the model; what lies beyond is not searched")
        return search(index, queries, model, k=given.get("top_k", DEFAULT_K), **chosen)


def _paths(sources: Sources) -> list[Path]:
    given: Any = [sources] if isinstance(sources, str | os.PathLike) else sources
    if isinstance(given, bytes) or not isinstance(given, Iterable):
        raise OptionError(f"sources are {shown(sources)}; expected the folder of a job, a .npy file, or a list of them")
    return [as_path(each, "a source") for each in given]
