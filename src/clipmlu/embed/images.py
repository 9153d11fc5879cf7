"""The image pipeline: reading, decoding and preprocessing in a thread pool, batches in flight, results in order.

Each batch uses a buffer from its first image to its last computed row, and buffers are reused: for any number of images
only a few batches are in memory. Workers write preprocessed images directly into their rows.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clipmlu.arguments import check_argument
from clipmlu.clock import Stage, StageClock, now
from clipmlu.data.images import clipped_note, is_clipped, read_source
from clipmlu.embed.image_graph import ImageGraph, ImageTower
from clipmlu.embed.items import ImageItem, Outcome, RowBatch
from clipmlu.embed.pixel_budget import PixelBudget, PixelReservation
from clipmlu.errors import InputError
from clipmlu.host import available_cpus, check_memory
from clipmlu.specs import PositiveInt

if TYPE_CHECKING:
    from clipmlu.data.preprocess import Preprocessor
    from clipmlu.embed.encoder import Encoder, PendingRows

Rows = npt.NDArray[Any]
"""Preprocessed images, shape (N, 3, H, W), dtype of the bundle: float32 or uint8."""

_log = logging.getLogger(__name__)
_IMAGES_PER_TASK = 8  # passing a task to a thread takes some 20 us; a small image is prepared in 200 us


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
    encoder = graph.encoder
    size = encoder.check_batch_size(batch_size)
    threads: int = check_argument(workers, PositiveInt | None, "workers") or available_cpus()
    depth = encoder.batches_in_flight
    # While the device has its batches, every worker has one task and one more in the queue.
    ahead = 1 + -(-2 * threads * _task_images(size, threads) // size)
    buffers = _BatchBuffers(encoder, size, ahead + depth)
    check_memory(buffers.nbytes, f"{ahead + depth} batches of {size} images")
    source = iter(items)
    with _Workers(encoder.preprocessor, threads, clock) as pool:
        preparing: deque[_Batch] = deque()
        running: deque[_Batch] = deque()
        exhausted = False
        while True:
            while not exhausted and len(preparing) < ahead:
                taken = list(islice(source, size))
                exhausted = len(taken) < size
                if taken:
                    preparing.append(_Batch(taken, buffers.take(), pool))
            if preparing and len(running) < depth:
                batch = preparing.popleft()
                batch.submit(graph)
                running.append(batch)
            elif running:
                batch = running.popleft()
                result = batch.finish(graph.width)
                buffers.give_back(batch.rows)
                yield result
            else:
                return


def _task_images(size: int, workers: int) -> int:
    return max(1, min(_IMAGES_PER_TASK, size // (2 * workers)))


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
    """Threads that prepare images; on exit each stops after its current image."""

    def __init__(self, preprocess: Preprocessor, count: int, clock: StageClock | None) -> None:
        self._preprocess = preprocess
        self._clock = clock
        self._count = count
        self._stopped = threading.Event()
        self._budget = PixelBudget(count)
        self._clipped: set[str] = set()
        self._pool = ThreadPoolExecutor(max_workers=count, thread_name_prefix="clipmlu-preprocess")

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopped.set()
        self._budget.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self._clipped:
            _log.warning("%s", clipped_note(self._clipped))

    def start(self, items: Sequence[ImageItem], rows: Rows) -> list[Future[list[InputError | None]]]:
        """Prepare the items into the rows, in tasks of a few."""
        step = _task_images(len(rows), self._count)
        return [
            self._pool.submit(self._prepare, items[start : start + step], rows[start : start + step])
            for start in range(0, len(items), step)
        ]

    def _prepare(self, items: Sequence[ImageItem], rows: Rows) -> list[InputError | None]:
        errors: list[InputError | None] = []
        spent: dict[Stage, float] = {"read": 0.0, "decode": 0.0, "preprocess": 0.0}
        reservation = PixelReservation(self._budget)
        for item, row in zip(items, rows, strict=False):
            if self._stopped.is_set():
                break
            try:
                errors.append(self._prepare_one(item, row, spent, reservation))
            finally:
                reservation.end()
        if self._clock is not None:
            self._clock.add(spent, len(errors))
        return errors

    def _prepare_one(
        self, item: ImageItem, row: Rows, spent: dict[Stage, float], reservation: PixelReservation
    ) -> InputError | None:
        start = now()
        try:
            source = read_source(item.load())
            read = now()
            image = self._preprocess.decode(
                source, name=item.id, max_pixels=item.max_pixels, reserve=reservation.reserve
            )
            if is_clipped(image):
                self._clipped.add(item.id)
            if item.check is not None:
                item.check(image)
            decoded = now()
            self._preprocess.write(image, row)
        except InputError as error:
            return error
        done = now()
        spent["read"] += read - start
        spent["decode"] += decoded - read
        spent["preprocess"] += done - decoded
        return None


class _Batch:
    """A batch of items: being prepared, then on the device."""

    def __init__(self, items: Sequence[ImageItem], rows: Rows, workers: _Workers) -> None:
        self.rows = rows
        self._items = items
        self._tasks = workers.start(items, rows)
        self._errors: dict[int, InputError] = {}
        self._pending: PendingRows | None = None

    def submit(self, graph: ImageGraph) -> None:
        """Wait until the images are prepared, and submit the readable ones."""
        found = [error for task in self._tasks for error in task.result()]
        self._errors = {position: error for position, error in enumerate(found) if error is not None}
        count = len(self._items) - len(self._errors)
        if self._errors:
            good = [position for position in range(len(self._items)) if position not in self._errors]
            self.rows[:count] = self.rows[good]
        if count:
            self._pending = graph.submit(self.rows[:count])

    def finish(self, width: int) -> RowBatch:
        """Wait for the device and return the results."""
        none = np.zeros((0, width), np.float32)
        return RowBatch(self._items, none if self._pending is None else self._pending.result(), self._errors)
