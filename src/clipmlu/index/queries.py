"""Queries: what was given as text or image, their vectors, and combinations of several."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from clipmlu.arguments import as_path, as_texts, check_argument, is_there, shown
from clipmlu.data.images import HEIF_SUFFIXES, IMAGE_SUFFIXES, ImageSource
from clipmlu.data.url.location import is_url
from clipmlu.errors import InputError, OptionError, did_you_mean
from clipmlu.file_names import expand_home, name_from_path
from clipmlu.model import Model

Kind = Literal["text", "image", "combined"]
Given = str | os.PathLike[str] | Image.Image
_SUFFIXES = IMAGE_SUFFIXES | HEIF_SUFFIXES
_PATH_STARTS = ("./", "../", "/", "~/")


class Query(NamedTuple):
    """One query.

    Attributes:
        name: the text, or the name of the image; for people.
        kind: what it is.
        source: the text, or the image as ``Model.embed_images`` takes it.
    """

    name: str
    kind: Literal["text", "image"]
    source: Any


def query_from(given: Given, on_note: Callable[[str], object]) -> Query:
    """Return the query of a text that may be the path of an image; a path object and an image in memory are images.

    Raises:
        InputError: it looks like a file, and there is none.
        OptionError: it is something else.
    """
    if isinstance(given, (os.PathLike, Image.Image)):
        return image_query(given)
    if not isinstance(given, str):
        raise OptionError(f"a query is {shown(given)}; expected a text, the path of an image, or an image of PIL")
    if is_url(given):
        raise InputError(f"Query '{given}' is a URL, and none is fetched here. Save the image, and give its path.")
    if is_there(expand_home(given)) and not expand_home(given).is_dir():
        if _looks_like_file(given):
            return image_query(given)
        on_note(f"'{given}' is searched as a text; for the file of that name: --image '{given}'")
    elif _looks_like_file(given):
        raise _missing(given)
    return text_query(given)


def text_query(text: str) -> Query:
    """Return the query of a text, whatever it looks like.

    Raises:
        OptionError: it is empty or no text.
    """
    if not check_argument(text, str, "a query").strip():
        raise OptionError("a query is an empty text; expected words, such as 'a dog on a beach'")
    return Query(text, "text", text)


def image_query(image: str | os.PathLike[str] | Image.Image) -> Query:
    """Return the query of an image.

    Raises:
        InputError: there is no such file.
    """
    if isinstance(image, Image.Image):
        return Query("image", "image", image)
    path = as_path(image, "a query")
    if not is_there(path):
        raise _missing(os.fspath(image))
    return Query(name_from_path(path), "image", path)


def _looks_like_file(text: str) -> bool:
    return Path(text).suffix.lower() in _SUFFIXES or text.startswith(_PATH_STARTS)


def _missing(text: str) -> InputError:
    path = expand_home(text)
    try:
        names = [each.name for each in os.scandir(path.parent)]
    except (OSError, ValueError):
        names = []
    meant = did_you_mean(path.name, names).replace("'", f"'{os.path.join(os.path.dirname(text), '')}", 1)
    return InputError(
        f"Query '{name_from_path(text)}' looks like an image file, and does not exist. {meant} "
        f"To search for these words: --text '{name_from_path(text)}'.".replace("  ", " ")
    )


class QueryVectors(NamedTuple):
    """Queries and their embeddings.

    Attributes:
        names: one for each row, for people.
        kinds: one for each row.
        vectors: float32, shape (Q, D).
    """

    names: list[str]
    kinds: list[Kind]
    vectors: npt.NDArray[np.float32]


def embed_queries(model: Model, queries: Sequence[Query]) -> QueryVectors:
    """Return the embeddings of queries, unit norm.

    Raises:
        InputError: an image cannot be read.
    """
    vectors = np.zeros((len(queries), model.embedding_dim), np.float32)
    texts = [place for place, query in enumerate(queries) if query.kind == "text"]
    images = [place for place, query in enumerate(queries) if query.kind == "image"]
    if texts:
        vectors[texts] = model.embed_texts([queries[place].source for place in texts])
    if images:
        sources: list[ImageSource] = [queries[place].source for place in images]
        vectors[images] = model.embed_images(sources)
    return QueryVectors([query.name for query in queries], [query.kind for query in queries], vectors)


def combine_queries(queries: QueryVectors, weights: Sequence[float] | None) -> QueryVectors:
    """Return one query of several: the sum of their unit vectors, each times its weight, divided by the norm of the sum.

    Args:
        queries: the queries.
        weights: one for each query; a negative one moves away from it. None for equal ones.

    Raises:
        OptionError: there is another number of weights, one is not finite, or the vectors cancel out.
    """
    count = len(queries.names)
    given = [1.0] * count if weights is None else [float(check_argument(each, float, "a weight")) for each in weights]
    if len(given) != count:
        raise OptionError(f"{len(given)} weights for {count} queries; give one for each, in the order of the queries")
    if not all(np.isfinite(given)):
        raise OptionError("a weight is infinite; expected numbers such as 1 or -0.5")
    largest = max(map(abs, given))
    if largest == 0:
        raise OptionError("all weights are 0; expected numbers such as 1 or -0.5")
    total = (np.asarray(given) / largest) @ queries.vectors.astype(np.float64)
    norm = float(np.linalg.norm(total))
    if norm < 1e-6:
        raise OptionError("the weighted queries cancel out; give other weights")
    names = [name if weight == 1 else f"{weight:g} x {name}" for name, weight in zip(queries.names, given, strict=True)]
    return QueryVectors([" + ".join(names)], ["combined"], (total / norm).astype(np.float32)[None])


def collect_queries(
    given: Given | Iterable[Given],
    texts: str | Sequence[str],
    images: Given | Iterable[Given],
    *,
    lines: Sequence[str],
    on_note: Callable[[str], object],
) -> list[Query]:
    """Return the queries of a call, in this order: those given, those of the lines of a file, texts, images.

    Raises:
        InputError, OptionError: a query is none; see ``query_from``.
    """
    queries = [query_from(each, on_note) for each in [*_several(given), *lines]]
    queries += [text_query(each) for each in as_texts(texts, "text")]
    queries += [image_query(each) for each in _several(images)]
    if not queries:
        raise OptionError("there is no query; expected a text, such as 'a dog on a beach', or the path of an image")
    return queries


def _several(given: Any) -> list[Any]:
    if isinstance(given, (str, os.PathLike, Image.Image)):
        return [given]
    if not isinstance(given, Iterable) or isinstance(given, (bytes, dict, set)):
        raise OptionError(
            f"a query is {shown(given)}; expected a text, the path of an image, an image of PIL, or a list of them"
        )
    return list(given)
