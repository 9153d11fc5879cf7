"""The index that is served: which bundle embeds its queries, and the search itself. It is independent of HTTP."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from clipmlu.arguments import check_argument
from clipmlu.bundle.space import EmbeddingSpace, space_of
from clipmlu.data.images import load_image
from clipmlu.data.thumbnails import jpeg_thumbnail
from clipmlu.errors import ClipmluError, InputError, OptionError
from clipmlu.file_names import name_from_path
from clipmlu.index.opened import Hit, open_index
from clipmlu.index.queries import QueryVectors, combine_queries
from clipmlu.serve.options import ServeOptions
from clipmlu.serve.refusal import Refusal
from clipmlu.serve.requests import ImageInput
from clipmlu.specs import PositiveInt

MOST_HITS = 1000
DEFAULT_HITS = 10
THUMBNAIL_EDGE = 256
_MOST_PATTERNS = 64
_LONGEST_PATTERN = 500  # characters; the time to read one grows with their square
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class SearchRequest:
    """A request for the images that are most similar to texts and images, which together are one query.

    Attributes:
        model: name of the bundle that embeds them; None for one of the index's model.
        texts: the texts.
        images: the images.
        weights: one for each, first those of the texts; None for equal ones.
        top_k: images to find; None for ``DEFAULT_HITS``.
        include: patterns of names; see ``VectorIndex.search``.
        exclude: patterns of names.
        exact: search all rows.
    """

    model: str | None = None
    texts: Sequence[str] = ()
    images: Sequence[ImageInput] = ()
    weights: Sequence[float] | None = None
    top_k: int | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    exact: bool = False


class ServedIndex:
    """An index that is served; threads may share it.

    Args:
        path: folder of the index, or of its job.
        spaces: embedding spaces of the served bundles, by name.

    Raises:
        InputError: there is no index, it is damaged, or none of the bundles is of its model.
        OptionError: no bundle fits the size of its vectors.
    """

    def __init__(self, path: str | os.PathLike[str], spaces: Mapping[str, EmbeddingSpace]) -> None:
        self._index = open_index(path)
        known = self._index.manifest.space
        self._names = [
            name
            for name, space in spaces.items()
            if (space == known if known is not None else space.embedding_dim == self._index.embedding_dim)
        ]
        if not self._names:
            model = "vectors of another size" if known is None else f"embeddings of '{known.model}'"
            raise InputError(
                f"Index '{name_from_path(self._index.path)}' holds {model}; no served bundle embeds queries for it. Serve a bundle that "
                "was compiled from that model, too."
            )

    @property
    def emulated(self) -> bool:
        """The emulated vendor SDK computed some of the rows."""
        return self._index.emulated

    def describe(self) -> dict[str, Any]:
        """Return its facts as a dict for JSON."""
        index = self._index
        return {"rows": index.rows, "models": self._names, "emulated": index.emulated, "recall": index.recall_of()}

    def model_name(self, wanted: str | None) -> str:
        """Return the name of the bundle that embeds a query.

        Raises:
            Refusal: the wanted one is of another model.
        """
        if wanted is None:
            return self._names[0]
        if wanted not in self._names:
            raise Refusal(
                "bad_request", f"Bundle '{wanted}' is not of the model of the index; expected {', '.join(self._names)}."
            )
        return wanted

    def check(self, request: SearchRequest, limits: ServeOptions) -> None:
        """Check a request before its query is embedded.

        Raises:
            Refusal: it has no query, or asks for too many images.
            OptionError: a value is wrong.
        """
        if not request.texts and not request.images:
            raise Refusal("bad_request", "There is no query; give a text, an image, or both.")
        if len(request.images) > limits.max_images or len(request.texts) > limits.max_texts:
            raise Refusal(
                "too_large",
                f"The query has {len(request.images)} images and {len(request.texts)} texts; expected {limits.max_images} and "
                f"{limits.max_texts} at most.",
            )
        if any(not text.strip() for text in request.texts):
            raise Refusal("bad_request", "A text of the query is empty.")
        patterns = [*request.include, *request.exclude]
        if len(patterns) > _MOST_PATTERNS or any(len(pattern) > _LONGEST_PATTERN for pattern in patterns):
            raise Refusal(
                "too_large",
                f"The request has {len(patterns)} patterns, the longest of {max(map(len, patterns))} characters; expected "
                f"{_MOST_PATTERNS} patterns of {_LONGEST_PATTERN} characters at most.",
            )
        if request.top_k is not None and check_argument(request.top_k, PositiveInt, "top_k") > MOST_HITS:
            raise Refusal("bad_request", f"top_k is {request.top_k}; expected {MOST_HITS} at most.")

    def search(self, request: SearchRequest, vectors: npt.NDArray[np.float32]) -> dict[str, Any]:
        """Return the hits as a dict for JSON, from the present state of the folder.

        Args:
            request: the request.
            vectors: embeddings of its images and then of its texts, unit norm.

        Raises:
            OptionError: the weights do not fit, or a pattern is empty.
            InputError: the index is damaged.
        """
        try:
            self._index.refresh()
        except InputError as error:  # gone or damaged on the disk: what was opened is still there
            _log.warning("The index is served as it was opened: %s", error)
        count = len(request.images)
        ordered = np.concatenate([vectors[count:], vectors[:count]])
        names = [*request.texts, *(image.id for image in request.images)]
        query = combine_queries(QueryVectors(names, ["combined"] * len(names), ordered), request.weights)
        (hits,) = self._index.search(
            query.vectors,
            request.top_k or DEFAULT_HITS,
            include=list(request.include),
            exclude=list(request.exclude),
            exact=request.exact,
        )
        recall = self._index.recall_of(list(request.include), list(request.exclude), exact=request.exact)
        return {"query": query.names[0], "hits": list(map(_hit, hits)), "rows": self._index.rows, "recall": recall}

    def thumbnail(self, row: int, name: str) -> bytes:
        """Return a small JPEG file of an image of the index.

        Args:
            row: number of its row.
            name: its id, which must be that of the row: an update changes the numbers.

        Raises:
            Refusal: there is no such row, or the image cannot be read.
        """
        try:
            hit = self._index.hit_of(row)
        except OptionError:
            hit = None
        if hit is None or hit.id != name:
            raise Refusal("not_found", f"The index has no image '{name}' in row {row}. Search again.")
        try:
            side = (THUMBNAIL_EDGE, THUMBNAIL_EDGE)
            return jpeg_thumbnail(load_image(self._index.image_of(hit), at_least=side), THUMBNAIL_EDGE)
        except (ClipmluError, OSError, ValueError) as error:
            _log.info("no thumbnail: %s", error)
            raise Refusal("not_found", f"The image '{name}' cannot be read.") from error


def _hit(hit: Hit) -> dict[str, Any]:
    """Return a hit without the path of its file, which is the server's own affair."""
    return {"id": hit.id, "score": hit.score, "row": hit.row}


def open_served_index(path: str | os.PathLike[str], manifests: Mapping[str, Any]) -> ServedIndex:
    """Open the index of a server; see ``ServedIndex``.

    Args:
        path: folder of the index.
        manifests: manifests of the served bundles, by name.
    """
    return ServedIndex(path, {name: space_of(manifest) for name, manifest in manifests.items()})
