"""Runs a model on a card, with several batches in flight."""

from __future__ import annotations

import collections
import contextlib
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .calls import checked, invoke, made, made_list, optional
from .errors import DriverError
from .sdk import Cards, describe_ports, narrowed
from .values import Array


class BatchTimes:
    """Times of one batch, in seconds of ``time.perf_counter``.

    Args:
        copied_in: start of copying its inputs to the card.
        enqueued: end of copying; its work is in the queue.

    Attributes:
        synced: end of ``sync``.
        copied_out: end of copying its results from the card.
    """

    def __init__(self, copied_in: float = 0.0, enqueued: float = 0.0) -> None:
        self.copied_in = copied_in
        self.enqueued = enqueued
        self.synced = enqueued
        self.copied_out = enqueued

    def stages(self, card_free: float) -> dict[str, float]:
        """Return the seconds of each stage, measured on this host; the names are those of clipmlu's stages.

        Args:
            card_free: end of the previous batch. Waiting for it does not count as computing, so the computing times of
                all batches never add up to more than the elapsed time.
        """
        return {
            "copy_in": self.enqueued - self.copied_in,
            "compute": self.synced - max(self.enqueued, card_free),
            "copy_out": self.copied_out - self.synced,
        }


class _Slot:
    """One context with its queue and input tensors: capacity for one batch in flight.

    C++ code has a context, a queue and tensors per thread (S#49760091045); no known code shares a queue between
    contexts, or has work of one context pending in two queues (api 7.7).
    """

    def __init__(self, engine: Any, device: Any) -> None:
        self.context = made("create_i_context", engine.create_i_context)
        self.queue = made("create_queue", device.create_queue)
        self.inputs: list[Any] = made_list("create_inputs", self.context.create_inputs)
        self.outputs: list[Any] = []
        self.feeds: list[Array] = []
        self.broken = False
        self.times = BatchTimes()

    def enqueue(self, feeds: list[Array], device: Any) -> None:
        """Start one batch; the feeds are kept unchanged until ``collect``."""
        self.feeds = feeds
        self.broken = True  # until all calls have succeeded
        begin = time.perf_counter()
        for tensor, feed in zip(self.inputs, feeds):
            checked("from_numpy", tensor.from_numpy, feed)
            optional("to", tensor.to, device)
        self.times = BatchTimes(copied_in=begin, enqueued=time.perf_counter())
        self.outputs = []
        checked("enqueue", self.context.enqueue, self.inputs, self.outputs, self.queue)
        self.broken = False

    def collect(self) -> list[Array]:
        """Wait for the batch; return copies, because the next run may overwrite the memory of ``asnumpy`` (api 7.5)."""
        self.broken = True
        checked("sync", self.queue.sync)
        self.times.synced = time.perf_counter()
        results = [_copy_of(tensor) for tensor in self.outputs]
        self.times.copied_out = time.perf_counter()
        self.outputs = []
        self.broken = False
        return results

    def release(self) -> None:
        """Release the tensors, then the context, then the queue (S#49216457251, "strict" order; api 5)."""
        self.outputs = []
        self.inputs = []
        self.feeds = []
        self.context = None
        self.queue = None


def _copy_of(tensor: Any) -> Array:
    if isinstance(tensor, list):  # a TENSORLIST (api 2.12), which no CLIP graph has
        raise DriverError("asnumpy", "an output is a list of tensors", kind="unexpected")
    values = invoke("asnumpy", tensor.asnumpy)
    if not isinstance(values, np.ndarray):
        raise DriverError("asnumpy", f"answered {type(values).__name__} instead of an array", kind="unexpected")
    return np.array(values, order="C", copy=True)


class Runner:
    """A model on one card, with several batches in flight that finish in the order of their start.

    Args:
        sdk: ``magicmind.python.runtime``.
        cards: the cards of this process.
        path: the model file.
        device: index of the card.
        depth: batches in flight; fewer if the SDK does not create so many contexts (``warnings`` then says so).
        ranges: for each input (smallest, largest) shape of the build; None to use the shapes that the model reports.
        check_finite: repeat a batch with non-finite results once, and fail if they are non-finite again.

    Attributes:
        ports: see ``describe_ports``.
        times: seconds by stage of the last finished batch; see ``BatchTimes.stages``.
    """

    def __init__(
        self,
        sdk: Any,
        cards: Cards,
        path: str,
        *,
        device: int = 0,
        depth: int = 2,
        ranges: Sequence[Any] | None = None,
        check_finite: bool = True,
    ) -> None:
        if not os.path.isfile(path):
            raise DriverError("deserialize_from_file", "there is no such file", [repr(path)], "model")
        self._cards = cards
        self._index = device
        self._check_finite = check_finite
        self._slots: list[_Slot] = []
        self._free: collections.deque[_Slot] = collections.deque()
        self._busy: collections.deque[_Slot] = collections.deque()
        self._card_free = 0.0
        self.times: dict[str, float] = {}
        self.warnings: list[str] = []
        self._device = cards.use(device)
        self._model = _load_model(sdk, path)
        self.ports = describe_ports(sdk, self._model)
        if ranges is not None and len(ranges) != len(self.ports["inputs"]):
            raise DriverError("open", f"{len(ranges)} ranges for {len(self.ports['inputs'])} inputs", kind="spec")
        self._ranges = ranges
        options = invoke("EngineConfig", sdk.Model.EngineConfig)
        options.device_type = "MLU"
        self._engine = made("create_i_engine", self._model.create_i_engine, options)
        self._make_slots(depth)

    @property
    def free_slots(self) -> int:
        """Number of batches that can be started now."""
        return len(self._free)

    def start(self, feeds: Sequence[Array]) -> None:
        """Start one batch; ``free_slots`` must not be 0.

        Args:
            feeds: one array per input, of the type that the model reports; int64 is accepted for int32.

        Raises:
            DriverError: kind ``shape`` if the batch does not fit; the SDK is then not called.
        """
        prepared = self._prepare(feeds)
        slot = self._free[0]
        self._run(slot, prepared)
        self._busy.append(self._free.popleft())

    def finish(self) -> list[Array]:
        """Wait for the oldest batch; return its outputs in the model's order, owned by the caller."""
        slot = self._busy.popleft()
        self._free.append(slot)
        self._cards.use(self._index)
        results = slot.collect()
        self._check_count(results)
        if self._check_finite and not _finite(results):
            results = self._repeat(slot)
        self.times = slot.times.stages(self._card_free)
        self._card_free = slot.times.synced
        slot.feeds = []
        return results

    def close(self) -> None:
        """Wait for the batches in flight, then release tensors, contexts and queues, the engine and the model."""
        for slot in self._busy:
            with contextlib.suppress(DriverError):
                checked("sync", slot.queue.sync)
        self._busy.clear()
        self._free.clear()
        while self._slots:
            self._slots.pop().release()
        self._engine = None
        self._model = None
        self._device = None

    def _make_slots(self, depth: int) -> None:
        for number in range(max(1, depth)):
            try:
                self._slots.append(_Slot(self._engine, self._device))
            except DriverError as error:
                if not number or error.kind == "device_lost":
                    raise
                self.warnings.append(f"batches in flight: {number} instead of {depth}: {error}")
                break
        self._free.extend(self._slots)

    def _run(self, slot: _Slot, feeds: list[Array]) -> None:
        self._cards.use(self._index)
        if slot.broken:  # the state of a context after a failed call is not known
            slot.release()
            slot.__init__(self._engine, self._device)  # type: ignore[misc]
        slot.enqueue(feeds, self._device)

    def _repeat(self, slot: _Slot) -> list[Array]:
        slot.broken = True
        self._run(slot, slot.feeds)
        results = slot.collect()
        self._check_count(results)
        if not _finite(results):
            raise DriverError("enqueue", "the results hold NaN or infinity, twice in a row", kind="not_finite")
        return results

    def _check_count(self, results: list[Array]) -> None:
        if len(results) != len(self.ports["outputs"]):
            status = f"gave {len(results)} outputs; the model has {len(self.ports['outputs'])}"
            raise DriverError("enqueue", status, kind="unexpected")

    def _prepare(self, feeds: Sequence[Array]) -> list[Array]:
        ports = self.ports["inputs"]
        if len(feeds) != len(ports):
            raise DriverError("check_shape", f"{len(feeds)} arrays for {len(ports)} inputs", kind="shape")
        prepared = []
        for index, (feed, port) in enumerate(zip(feeds, ports)):
            self._check_shape(index, feed, port["shape"])
            narrow = feed.dtype == np.int64 and port["dtype"] == "int32"
            fitting = narrowed(feed, "check_shape") if narrow else feed
            if fitting.dtype != np.dtype(port["dtype"]):
                status = f"input {index} takes {port['dtype']}; got {feed.dtype}"
                raise DriverError("check_shape", status, kind="shape")
            prepared.append(np.ascontiguousarray(fitting))
        return prepared

    def _check_shape(self, index: int, feed: Array, reported: Sequence[int]) -> None:
        """Check a shape; for shapes outside the build the SDK's behaviour is not known, and it may crash (api 7.1)."""
        if self._ranges is not None and self._ranges[index] is not None:
            low, high = self._ranges[index]
        else:  # the model reports -1 or no shape
            low = [size if size > 0 else 1 for size in reported] or [1] * feed.ndim
            high = [size if size > 0 else sys.maxsize for size in reported] or [sys.maxsize] * feed.ndim
        fits = feed.ndim == len(low) and all(a <= size <= b for a, size, b in zip(low, feed.shape, high))
        if not fits:
            status = f"input {index} takes {list(low)} to {list(high)}; got {list(feed.shape)}"
            raise DriverError("check_shape", status, kind="shape")


def _load_model(sdk: Any, path: str) -> Any:
    model = invoke("Model", sdk.Model)
    try:
        checked("deserialize_from_file", model.deserialize_from_file, path)
    except DriverError as error:
        if error.kind in ("status", "exception"):
            error.kind = "model"
        raise
    return model


def _finite(results: Sequence[Array]) -> bool:
    return all(bool(np.isfinite(values).all()) for values in results if values.dtype.kind == "f")
