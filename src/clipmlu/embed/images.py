"""The image pipeline: reading, decoding and preprocessing in a thread pool, batches in flight, results in order.

Each batch uses a buffer from its first image to its last computed row, and buffers are reused: for any number of images
only a few batches are in memory. Workers write preprocessed images directly into their rows.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipmlu.arguments import check_argument
from clipmlu.clock import Stage, StageClock, now
from clipmlu.data.images import clipped_note, is_clipped, read_source
from clipmlu.data.picture import Size, picture_size, pillow_image
from clipmlu.data.url.found import Download
from clipmlu.data.url.location import redact
from clipmlu.embed.image_graph import ImageGraph, ImageTower
from clipmlu.embed.items import ImageItem, Outcome, RowBatch
from clipmlu.embed.pixel_budget import PixelBudget, PixelReservation
from clipmlu.errors import InputError
from clipmlu.host import available_cpus, check_memory
from clipmlu.specs import PositiveInt

if TYPE_CHECKING:
    from clipmlu.data.preprocess import Preprocessor
    from clipmlu.embed.encoder import Encoder
    from clipmlu.embed.rows import PendingRows

Rows = npt.NDArray[Any]
"""Preprocessed images, shape (N, 3, H, W), dtype of the bundle: float32 or uint8."""

_log = logging.getLogger(__name__)


def embed_items(
    encoder: Encoder,
    items: Iterable[ImageItem],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    clock: StageClock | None = None,
) -> Generator[Outcome, None, None]:
    """Embed images one by one, lazily and in order; see ``embed_batches``."""
    for batch in embed_batches(encoder, items, batch_size=batch_size, workers=workers, clock=clock):
        yield from batch.outcomes()


def embed_batches(
    encoder: Encoder,
    items: Iterable[ImageItem],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    clock: StageClock | None = None,
) -> Generator[RowBatch, None, None]:
    """Embed images; see ``run_batches``.

    Args:
        encoder: the encoder.
        items: the images.
        batch_size: images per batch; None for the bundle's own.
        workers: see ``run_batches``.
        clock: see ``run_batches``.

    Raises:
        BundleError: the bundle has no separate image tower.
        ShapeError, OptionError: as for ``run_batches``.
    """
    yield from run_batches(ImageTower(encoder), items, batch_size=batch_size, workers=workers, clock=clock)


def run_batches(
    graph: ImageGraph,
    items: Iterable[ImageItem],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    clock: StageClock | None = None,
) -> Generator[RowBatch, None, None]:
    """Run images through a graph, lazily and in order; closing the generator stops the workers.

    Only a few batches are in memory, for any number of items, and an item is taken only when there is space for it. An
    image that cannot be read makes its batch one row shorter. Only a few large images are decoded at a time: see
    ``PixelBudget``. The number of images clipped to 8 bits is logged at the end.

    Args:
        graph: computes a row for each image.
        items: the images.
        batch_size: images per batch; None for the bundle's own.
        workers: threads that read, decode and preprocess; None for one per CPU that this process may use.
        clock: records the time of the stages before the device.

    Raises:
        ShapeError: the bundle does not support the batch size.
        OptionError: the number of workers is not 1 or more, or the batches do not fit in memory.
    """
    size = graph.encoder.check_batch_size(batch_size)
    source = iter(items)
    groups = iter(lambda: list(islice(source, size)), [])
    yield from run_groups(graph, groups, batch_size=size, workers=workers, clock=clock)


def run_groups(
    graph: ImageGraph,
    groups: Iterable[Sequence[ImageItem]],
    *,
    batch_size: int | None = None,
    workers: int | None = None,
    clock: StageClock | None = None,
) -> Generator[RowBatch, None, None]:
    """Run images through a graph, lazily and in order; each group becomes one batch. See ``run_batches``.

    Args:
        graph: computes a row for each image.
        groups: the images of each batch, 1 to ``batch_size``.
        batch_size: largest number of images per batch; None for the bundle's own.
        workers: see ``run_batches``.
        clock: see ``run_batches``.

    Raises:
        ShapeError, OptionError: as for ``run_batches``.
    """
    encoder = graph.encoder
    size = encoder.check_batch_size(batch_size)
    threads: int = check_argument(workers, PositiveInt | None, "workers") or available_cpus()
    depth = encoder.batches_in_flight
    # While one batch waits for its last image, every worker has two images of the next ones.
    ahead = 1 + -(-2 * threads // size)
    buffers = _BatchBuffers(encoder, size, ahead + depth)
    check_memory(buffers.nbytes, f"{ahead + depth} batches of {size} images")
    source = iter(groups)
    with _Workers(encoder.preprocessor, threads, clock) as pool:
        preparing = pool.preparing
        running: deque[_Batch] = deque()
        exhausted = False
        while True:
            while not exhausted and len(preparing) < ahead:
                taken = next(source, None)
                exhausted = taken is None
                if taken is not None:
                    preparing.append(_Batch(taken, buffers.take()))
                    pool.start(preparing[-1])
            if preparing and len(running) < depth:
                batch = preparing[0]
                batch.submit(graph)
                preparing.popleft()
                running.append(batch)
            elif running:
                batch = running.popleft()
                result = batch.finish(graph.width)
                buffers.give_back(batch.rows)
                yield result
            else:
                return


class _BatchBuffers:
    """Reusable buffers for batches, at most ``count``.

    Attributes:
        nbytes: size of all buffers in bytes.
    """

    def __init__(self, encoder: Encoder, size: int, count: int) -> None:
        self._shape = (size, *encoder.preprocessor.shape)
        self._dtype = encoder.pixel_dtype
        self._left = count
        self._free: list[Rows] = []
        self.nbytes = count * math.prod(self._shape) * self._dtype.itemsize

    def take(self) -> Rows:
        if self._free:
            return self._free.pop()
        assert self._left > 0, "there are more batches under way than buffers"
        self._left -= 1
        return np.empty(self._shape, self._dtype)

    def give_back(self, buffer: Rows) -> None:
        self._free.append(buffer)


class _Workers:
    """Threads that prepare the images of batches; on exit each stops after its current image.

    A thread takes image after image of the batches that are open, and ends when there is none. Nothing is passed from
    thread to thread for an image: a future for each would hold the interpreter's lock for longer than all else that
    Python does for an image.

    Attributes:
        preparing: the batches that are not submitted yet; their downloads are cancelled on exit.
    """

    def __init__(self, preprocess: Preprocessor, count: int, clock: StageClock | None) -> None:
        self.preparing: deque[_Batch] = deque()
        self._preprocess = preprocess
        self._clock = clock
        self._count = count
        self._running = 0
        self._open: deque[_Batch] = deque()
        self._lock = threading.Lock()
        self._stopped = False
        self._budget = PixelBudget(count)
        self._clipped: set[str] = set()
        self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix="clipmlu-preprocess")

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopped = True
        self._budget.close()
        for batch in self.preparing:
            batch.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._clipped:
            _log.warning("%s", clipped_note(self._clipped))

    def start(self, batch: _Batch) -> None:
        """Prepare the batch after those that were started before it."""
        with self._lock:
            self._open.append(batch)
            starting = min(self._count - self._running, len(batch.items))
            self._running += starting
        for _ in range(starting):
            self._pool.submit(self._work)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            self._prepare(batch)

    def _next_batch(self) -> _Batch | None:
        """Return the first batch with images that no thread has taken; None to end the thread."""
        with self._lock:
            while self._open and not self._open[0].waiting:
                self._open.popleft()
            if self._open and not self._stopped:
                return self._open[0]
            self._running -= 1
            return None

    def _prepare(self, batch: _Batch) -> None:
        """Prepare images of the batch until none is left."""
        spent: dict[Stage, float] = {"read": 0.0, "decode": 0.0, "preprocess": 0.0}
        reservation = PixelReservation(self._budget)
        done = 0
        while not self._stopped and (position := batch.take()) is not None:
            try:
                error = self._prepare_one(batch, position, spent, reservation)
                if error is not None:
                    batch.errors[position] = error
            except BaseException as failure:  # raised again where the batch is submitted
                self._stopped = True  # all images before this one are taken, and those after it are not needed
                batch.fail(position, failure)
            finally:
                reservation.end()
            done += 1
        if self._clock is not None:
            self._clock.add(spent, done)
        batch.finish_images(done)

    def _prepare_one(
        self, batch: _Batch, position: int, spent: dict[Stage, float], reservation: PixelReservation
    ) -> InputError | None:
        start, item, sizes = now(), batch.items[position], batch.sizes
        name = redact(item.id)
        on_size = functools.partial(sizes.__setitem__, position) if self._preprocess.fast else None
        try:
            source = read_source(item.load())
            read = now()
            image = self._preprocess.decode(
                source, name=name, max_pixels=item.max_pixels, reserve=reservation.reserve, on_size=on_size
            )
            if sizes[position] is None:
                sizes[position] = picture_size(image)
            if is_clipped(image):
                self._clipped.add(name)
            if item.check is not None:
                item.check(pillow_image(image))
            decoded = now()
            self._preprocess.write(image, batch.rows[position])
        except InputError as error:
            return error
        done = now()
        spent["read"] += read - start
        spent["decode"] += decoded - read
        spent["preprocess"] += done - decoded
        return None


class _Batch:
    """A batch of items: being prepared, then on the device.

    Attributes:
        items: the images.
        rows: buffer of the prepared images, one row for each item.
        sizes: width and height of each image in its file; None until it is decoded.
        errors: maps a position in ``items`` to the error of its image.
        waiting: positions that no thread has taken.
    """

    def __init__(self, items: Sequence[ImageItem], rows: Rows) -> None:
        self.items = items
        self.rows = rows
        self.sizes: list[Size | None] = [None] * len(items)
        self.errors: dict[int, InputError] = {}
        self.waiting = deque(range(len(items)))
        self._failures: dict[int, BaseException] = {}
        self._left = len(items)
        self._lock = threading.Lock()
        self._prepared = threading.Event()
        self._pending: PendingRows | None = None

    def take(self) -> int | None:
        """Return the position of an image for the calling thread to prepare, or None if all are taken."""
        try:
            return self.waiting.popleft()
        except IndexError:
            return None

    def cancel(self) -> None:
        """End the downloads of images; a thread would otherwise keep the process alive until their time limit."""
        for item in self.items:
            if isinstance(item.load, Download):
                item.load.cancel()

    def fail(self, position: int, failure: BaseException) -> None:
        """Store an exception that ends the run; the images that wait are not prepared."""
        self._failures[position] = failure
        skipped = 0
        while self.take() is not None:
            skipped += 1
        self.finish_images(skipped)

    def finish_images(self, count: int) -> None:
        """Count images as finished."""
        with self._lock:
            self._left -= count
            if not self._left:
                self._prepared.set()

    def submit(self, graph: ImageGraph) -> None:
        """Wait until the images are prepared, and submit the readable ones."""
        self._prepared.wait()
        if self._failures:
            raise self._failures[min(self._failures)]
        count = len(self.items) - len(self.errors)
        if self.errors:
            self.errors = dict(sorted(self.errors.items()))
            good = [position for position in range(len(self.items)) if position not in self.errors]
            self.rows[:count] = self.rows[good]
        if count:
            self._pending = graph.submit(self.rows[:count])

    def finish(self, width: int) -> RowBatch:
        """Wait for the device and return the results."""
        none = np.zeros((0, width), np.float32)
        return RowBatch(self.items, none if self._pending is None else self._pending.result(), self.errors, self.sizes)
