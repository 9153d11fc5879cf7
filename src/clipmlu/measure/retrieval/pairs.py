"""The images and texts of a retrieval evaluation, and their embeddings."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from clipmlu.data.images import content_digest
from clipmlu.data.pairs.pairs import PairedImage, PairSet
from clipmlu.embed.encoder import Encoder
from clipmlu.embed.image_graph import ImageTower
from clipmlu.embed.images import run_batches
from clipmlu.embed.items import ImageItem
from clipmlu.embed.rows import FloatArray
from clipmlu.errors import InputError
from clipmlu.keys import value_digest
from clipmlu.measure.retrieval.ranks import IntArray, Matches, connected_groups
from clipmlu.measure.samples import Overlap, SkippedImage
from clipmlu.steps import Step

_TEXTS_AT_ONCE = 8192  # their token ids are in memory


@dataclasses.dataclass(frozen=True)
class EmbeddedImages:
    """Images that were read, decoded and embedded.

    Attributes:
        positions: positions of the N readable images among the given ones.
        rows: float32, shape (N, D), unit L2 norm per row.
        digests: their content digests.
        skipped: the other images.
    """

    positions: list[int]
    rows: FloatArray
    digests: list[str]
    skipped: tuple[SkippedImage, ...]


def embed_images(
    encoder: Encoder,
    images: Sequence[PairedImage],
    *,
    max_pixels: int | None,
    batch_size: int | None = None,
    workers: int | None = None,
    overlap: Overlap | None = None,
    on_images: Callable[[int], object] = lambda _count: None,
) -> EmbeddedImages:
    """Embed images with the image tower; those that cannot be read are listed.

    Args:
        encoder: the model.
        images: the images.
        max_pixels: largest width x height; larger images are errors.
        batch_size: images per batch; None for the bundle's own.
        workers: threads that read, decode and preprocess; None for all CPUs.
        overlap: checks each image.
        on_images: called with the number of images of each batch when it is done.

    Raises:
        BundleError: the bundle has no image tower.
        ShapeError: the bundle does not support the batch size.
        OverlapError: see ``Overlap``.
    """
    digests: dict[int, str] = {}

    def item(position: int, image: PairedImage) -> ImageItem:
        def check(decoded: Image.Image) -> None:
            digests[position] = content_digest(decoded)
            if overlap is not None:
                overlap.check_digest(image.name, digests[position])

        return ImageItem(image.name, image.load, check, max_pixels)

    rows, errors, start = [], {}, 0
    items = (item(position, image) for position, image in enumerate(images))
    for batch in run_batches(ImageTower(encoder), items, batch_size=batch_size, workers=workers):
        rows.append(batch.rows)
        errors.update({start + position: error for position, error in batch.errors.items()})
        start += len(batch.items)
        on_images(len(batch.items))
    good = [position for position in range(len(images)) if position not in errors]
    return EmbeddedImages(
        good,
        np.concatenate(rows),
        [digests[position] for position in good],
        tuple(SkippedImage(id=images[position].name, reason=str(error)) for position, error in sorted(errors.items())),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalPairs:
    """Different images and different texts, and which belong together.

    Attributes:
        images: the images; those with the same content are one, with the texts of all.
        digests: their content digests.
        texts: the texts, each once.
        matches: the pairs, with the images as queries and the texts as candidates.
        duplicates: number of images that were merged into another one.
    """

    images: tuple[PairedImage, ...]
    digests: tuple[str, ...]
    texts: tuple[str, ...]
    matches: Matches
    duplicates: int

    @property
    def shared_texts(self) -> int:
        """Number of texts that belong to several images."""
        return sum(count > 1 for count in Counter(self.matches.candidates.tolist()).values())

    @property
    def digest(self) -> str:
        """Digest of the pairs: of the pixels of all images, and of their texts; the order does not matter."""
        texts: dict[str, list[str]] = {digest: [] for digest in self.digests}
        for image, text in zip(self.matches.queries.tolist(), self.matches.candidates.tolist(), strict=True):
            texts[self.digests[image]].append(self.texts[text])
        return value_digest(sorted((digest, sorted(own)) for digest, own in texts.items()))

    def groups(self) -> tuple[IntArray, IntArray]:
        """Number the independent groups, an image with its texts, and images that share a text; of each image and each text."""
        return connected_groups(self.matches, len(self.images), len(self.texts))


def merge_images(images: Sequence[PairedImage], digests: Sequence[str]) -> tuple[RetrievalPairs, list[int]]:
    """Merge images with the same content, and texts that are equal.

    Args:
        images: readable images.
        digests: their content digests.

    Returns:
        The pairs, and the positions of the images that stand for themselves.

    Raises:
        InputError: fewer than two different images or texts are left.
    """
    first = {digest: position for position, digest in reversed(list(enumerate(digests)))}
    kept = sorted(first.values())
    row_of = {digests[position]: row for row, position in enumerate(kept)}
    texts: dict[str, int] = {}
    pairs = dict.fromkeys(
        (row_of[digest], texts.setdefault(text, len(texts)))
        for image, digest in zip(images, digests, strict=True)
        for text in image.texts
    )
    for found, what in ((kept, "image"), (texts, "text")):
        if len(found) < 2:
            raise InputError(
                f"The pairs have only {len(found)} different {what}{'s'[: len(found) != 1]}; expected two or more, since a search among one always finds it."
            )
    queries, candidates = np.array(list(pairs), np.int64).T
    merged = RetrievalPairs(
        images=tuple(images[position] for position in kept),
        digests=tuple(digests[position] for position in kept),
        texts=tuple(texts),
        matches=Matches.of_pairs(queries, candidates),
        duplicates=len(images) - len(kept),
    )
    return merged, kept


def embed_captions(encoder: Encoder, texts: Sequence[str], step: Step) -> tuple[FloatArray, int]:
    """Embed texts as they are, without templates.

    Returns:
        float32 embeddings, shape (T, D), unit L2 norm per row; and the number of texts that are longer than the context.

    Raises:
        BundleError: the bundle has no text tower.
        InputError: the tokenizer cannot represent a text.
    """
    pieces = [texts[start : start + _TEXTS_AT_ONCE] for start in range(0, len(texts), _TEXTS_AT_ONCE)]
    rows = np.concatenate([encoder.embed_texts(list(piece), on_rows=step.advance) for piece in pieces])
    return rows, sum(map(encoder.tokenizer.count_truncated, pieces))


def check_any_readable(pairs: PairSet, images: EmbeddedImages) -> None:
    """Check that an image was read.

    Raises:
        InputError: none was; the message gives the first error.
    """
    if not images.positions:
        raise InputError(
            f"Not one of the {len(images.skipped)} images of '{pairs.name}' could be read. First: {images.skipped[0].reason}"
        )


def require_same(images: EmbeddedImages, pairs: RetrievalPairs, *, fast: bool = False) -> None:
    """Check that images are those that were read before.

    Args:
        images: the images, in the order of the pairs.
        pairs: the pairs.
        fast: they were decoded at a scale that depends on the model, so that their pixels cannot be compared.

    Raises:
        InputError: one cannot be read any more, or has changed.
    """
    if images.skipped:
        raise InputError(f"An image that was read before cannot be read now: {images.skipped[0].reason}")
    if not fast and tuple(images.digests) != pairs.digests:
        changed = next(
            image.name
            for image, old, new in zip(pairs.images, pairs.digests, images.digests, strict=True)
            if old != new
        )
        raise InputError(f"Image '{changed}' has changed during the evaluation. Run it again.")
