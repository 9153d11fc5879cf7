"""Many images through the image tower: decoding and preprocessing in a pool, batches in flight, results in order."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from clipmlu.data.images import ImageSource, load_image
from clipmlu.errors import InputError
from clipmlu.stages import StageClock, now

if TYPE_CHECKING:
    from PIL import Image

    from clipmlu.classify.encoder import Encoder, FloatArray, PendingEmbeddings

DEFAULT_WORKERS = 2
_BATCHES_IN_FLIGHT = 2
_ENTRIES_PER_PLACE = 4


@dataclasses.dataclass(frozen=True)
class ImageItem:
    """One image to embed: what it is called, and how to get at it."""

    id: str
    load: Callable[[], Image.Image]


class Outcome(NamedTuple):
    """What became of one item: an embedding, or the reason why there is none."""

    item: ImageItem
    embedding: FloatArray | None
    error: InputError | None

    def require_embedding(self) -> FloatArray:
        """The embedding, shape (D,).

        Raises:
            InputError: the image could not be read.
        """
        if self.embedding is None:
            assert self.error is not None
            raise self.error
        return self.embedding


def items_from_images(images: ImageSource | Iterable[ImageSource]) -> tuple[list[ImageItem], bool]:
    """Items from one image or many, and whether it was one."""
    from PIL import Image

    if isinstance(images, np.ndarray):
        single = images.ndim <= 3
        sources: list[ImageSource] = [images] if single else list(images)
    elif isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image)):
        single, sources = True, [images]
    else:
        single, sources = False, list(images)
    return [item_from_source(source, position) for position, source in enumerate(sources)], single


def item_from_source(source: ImageSource, position: int = 0) -> ImageItem:
    """An item from anything that ``load_image`` reads; paths are their own id."""
    name = str(source) if isinstance(source, (str, os.PathLike)) else f"image {position}"
    return ImageItem(name, lambda: load_image(source))


def embed_items(
    encoder: Encoder,
    items: Iterable[ImageItem],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    clock: StageClock | None = None,
) -> Iterator[Outcome]:
    """Embed images, lazily and in order.

    At most a few batches are held in memory, however many items there are. An image that cannot be read yields an
    outcome with its error and takes no place in a batch.

    Args:
        encoder: what embeds them.
        items: the images.
        batch_size: images per batch; None for the bundle's own.
        workers: threads that decode and preprocess; None for ``DEFAULT_WORKERS``.
        clock: where decoding and preprocessing are counted.

    Raises:
        ShapeError: the bundle does not take such batches.
    """
    size = encoder.check_batch_size(batch_size)
    workers = workers or DEFAULT_WORKERS
    preprocess = encoder.preprocessor

    def prepare(item: ImageItem) -> FloatArray | InputError:
        try:
            start = now()
            image = item.load()
            loaded = now()
            pixels = preprocess(image)
        except InputError as error:
            return error
        if clock is not None:
            clock.add({"decode": loaded - start, "preprocess": now() - loaded}, 1)
        return pixels

    pool = ThreadPoolExecutor(max_workers=workers, thread_name_prefix="clipmlu-preprocess")
    in_flight: deque[_Batch] = deque()
    try:
        for batch in _batches(_map_in_order(pool, prepare, items, window=2 * size + workers), size):
            batch.start(encoder)
            in_flight.append(batch)
            if len(in_flight) > _BATCHES_IN_FLIGHT:
                yield from in_flight.popleft().finish()
        while in_flight:
            yield from in_flight.popleft().finish()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


Prepared = tuple[ImageItem, "FloatArray | InputError"]


class _Batch:
    """Prepared images of one batch, broken ones among them."""

    def __init__(self) -> None:
        self.entries: list[Prepared] = []
        self.count = 0
        self._pending: PendingEmbeddings | None = None

    def add(self, entry: Prepared) -> None:
        self.entries.append(entry)
        self.count += not isinstance(entry[1], InputError)

    def start(self, encoder: Encoder) -> None:
        pixels = [prepared for _, prepared in self.entries if not isinstance(prepared, InputError)]
        if pixels:
            self._pending = encoder.submit_images(np.stack(pixels))
        # The pixels are on their way; what is left here is small.
        self.entries = [
            (item, prepared if isinstance(prepared, InputError) else _SENT) for item, prepared in self.entries
        ]

    def finish(self) -> Iterator[Outcome]:
        rows = iter(self._pending.result() if self._pending is not None else ())
        for item, prepared in self.entries:
            if isinstance(prepared, InputError):
                yield Outcome(item, None, prepared)
            else:
                yield Outcome(item, next(rows), None)


_SENT: FloatArray = np.empty(0, np.float32)


def _batches(prepared: Iterable[Prepared], size: int) -> Iterator[_Batch]:
    batch = _Batch()
    for entry in prepared:
        batch.add(entry)
        # Broken images take no place in a batch; without the second bound, a run of them would be held back for ever.
        if batch.count == size or len(batch.entries) == _ENTRIES_PER_PLACE * size:
            yield batch
            batch = _Batch()
    if batch.entries:
        yield batch


def _map_in_order(
    pool: ThreadPoolExecutor,
    function: Callable[[ImageItem], FloatArray | InputError],
    items: Iterable[ImageItem],
    *,
    window: int,
) -> Iterator[Prepared]:
    """Like ``map`` over the pool, with at most ``window`` items started ahead of the one that is yielded."""
    started: deque[tuple[ImageItem, Future[FloatArray | InputError]]] = deque()
    for item in items:
        started.append((item, pool.submit(function, item)))
        if len(started) >= window:
            first, future = started.popleft()
            yield first, future.result()
    while started:
        first, future = started.popleft()
        yield first, future.result()
