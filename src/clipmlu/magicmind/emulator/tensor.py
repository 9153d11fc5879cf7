"""Runtime tensors: host arrays and results on an emulated card (api 2.13)."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from clipmlu.magicmind.emulator.devices import Device
from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.jobs import Job
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.status import Code, Status, StatusError, returns_status
from clipmlu.magicmind.emulator.types import Array, DataType, Dims, Shape, TensorLocation, get_numpy_dtype_by_datatype

_SEEN_CASTS = {("float64", DataType.FLOAT32), ("int64", DataType.INT32), ("float64", DataType.UINT8)}
"""Array type -> tensor type pairs in public scripts (MC clip infer.py; MC transformers, TR bert, MC-old WeNet; MC
swintransformer, resnet50_pytorch and mobilenetv3 infer.py, whose models take UINT8 pixels because they are built with means
and vars, while the scripts collect the pixels in an ``np.empty`` of float64)."""


def poison(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """What a result holds before it may be read: NaN, the smallest integer, or True."""
    value: Any = np.nan if dtype.kind == "f" else True if dtype.kind == "b" else np.iinfo(dtype).min
    if dtype.kind == "u":
        value = np.iinfo(dtype).max
    return np.full(tuple(max(size, 1) if size < 0 else size for size in shape), value, dtype)


class Tensor:
    """A tensor of an engine's input or output, or a free-standing one.

    Args:
        shape: its shape (MC-old tacotron2 mm_utils.py).
        dtype: its element type.
        location: where it lives.
    """

    def __init__(
        self,
        shape: Any = (),
        dtype: DataType = DataType.FLOAT32,
        location: TensorLocation = TensorLocation.kHost,
    ) -> None:
        sizes: Shape = tuple(Dims(shape).GetDims())
        self.dtype = dtype
        self.location = location
        self._rank: int | None = None
        self._lock = threading.Lock()
        self._array: Array = np.zeros(tuple(max(size, 0) for size in sizes), get_numpy_dtype_by_datatype(dtype))
        self._filled = True
        self._source: Array | None = None
        self._pending: set[Job] = set()
        self._producer: tuple[Job, int] | None = None

    @classmethod
    def for_port(cls, dtype: DataType, dims: Shape) -> Tensor:
        """A tensor that waits for its contents."""
        tensor = cls(tuple(max(size, 0) for size in dims), dtype)
        tensor._rank = len(dims)
        tensor._filled = False
        return tensor

    @property
    def shape(self) -> Shape:
        """The shape; ``()`` for a scalar (CV mm_infer.py)."""
        return tuple(self._array.shape)

    @returns_status
    def from_numpy(self, array: Any, /) -> None:
        """Take the contents, and with them the shape, of an array; it belongs to the card until the next ``sync``.

        float64 for FLOAT32 and UINT8, int64 for INT32 and strided arrays are taken as in public scripts; other casts are
        open (7.2).
        """
        if not isinstance(array, np.ndarray):
            raise TypeError(f"from_numpy(): expected numpy.ndarray, got {type(array).__name__}")
        hit("from_numpy")
        strict = switches()
        if strict.check_rank and self._rank is not None and array.ndim != self._rank:
            raise StatusError(Code.INVALID_ARGUMENT, f"from_numpy: expected {self._rank} axes, got {array.ndim}")
        if strict.inputs_stay_lent:
            for job in self._pending:
                job.spoil("an input tensor was overwritten before sync")
        taken = _cast(array, self.dtype)
        # The same memory batch after batch, as on a card, unless work reads it or the caller has a view of it.
        if self._pending or self._array.shape != taken.shape or np.may_share_memory(self._array, taken):
            self._array = np.empty(taken.shape, taken.dtype)
        np.copyto(self._array, taken)
        self._source = array if strict.inputs_stay_lent else None
        self._producer = None
        self._filled = True

    memcpy_from_host = from_numpy
    """The low-level name (MC-old tacotron2 decoder.py)."""

    def to(self, target: Any, /) -> Any:
        """Move to a device (return ignored everywhere: MC mm_runner.py) or convert to a type (MC-old tacotron2 infer.py)."""
        if isinstance(target, DataType):
            converted = Tensor((), target, self.location)
            converted._array = self.asnumpy().astype(get_numpy_dtype_by_datatype(target))
            return converted
        if not isinstance(target, Device):
            raise TypeError(f"to(): expected Device or DataType, got {type(target).__name__}")
        self.location = TensorLocation.kMLU
        return None if switches().silent_returns else self

    def asnumpy(self) -> Array:
        """The contents on the host; before ``sync`` they are poison (strict) or waited for (lenient), see 7.5."""
        if self._producer is not None and not switches().poison_before_sync:
            job, index = self._producer
            job.done.wait()
            if job.results is not None and self._producer is not None:
                self.publish(job.results[index])
        return self._array if switches().asnumpy_is_view else self._array.copy()

    def resize(self, shape: Any, /) -> Status | None:
        """Give up the contents and take another shape (CV mm_infer.py)."""
        self._array = np.zeros(tuple(Dims(shape).GetDims()), self._array.dtype)
        return None if switches().silent_returns else Status()

    def reshape(self, shape: Any, /) -> Status | None:
        """Keep the contents and take another shape (MC-old tacotron2)."""
        self._array = self._array.reshape(tuple(shape))
        return None if switches().silent_returns else Status()

    def data_address(self) -> int:
        """Where the contents lie (MC-old tacotron2 decoder.py)."""
        return int(self._array.ctypes.data)

    def set_data_address(self, address: int, dims: Any, /) -> Status:
        """Refused: the emulator hands out no card memory."""
        return Status(Code.UNIMPLEMENTED, "set_data_address: the emulated MagicMind SDK has no raw device memory")

    # What follows is the emulator's own, for contexts and queues.

    def lend(self, job: Job) -> None:
        """An enqueue reads this tensor."""
        self._pending.add(job)

    def give_back(self, job: Job) -> None:
        """The enqueue is synchronised: spoil it if the lent array changed meanwhile, else let go of the array."""
        self._pending.discard(job)
        if self._source is not None:
            if not _same(self._source, self._array):
                job.spoil("the array given to from_numpy was overwritten before sync")
            if not self._pending:
                self._source = None

    def expect(self, job: Job, index: int, shape: Shape) -> None:
        """An enqueue will write this tensor."""
        if self._array.shape == tuple(shape) and self._filled:
            np.copyto(self._array, poison(shape, self._array.dtype))
        else:
            self._array = poison(shape, self._array.dtype)
        self._filled = True
        self.location = TensorLocation.kMLU
        self._source = None
        self._producer = (job, index)

    def publish(self, result: Array) -> None:
        """The result of an enqueue may be read; what ``asnumpy`` showed before changes in place when it is a view."""
        if self._array.shape == result.shape and switches().asnumpy_is_view:
            np.copyto(self._array, result)
        else:
            self._array = np.array(result)
        self._producer = None

    @property
    def filled(self) -> bool:
        """Whether anything was ever put in."""
        return self._filled

    @property
    def producer(self) -> tuple[Job, int] | None:
        """The enqueue, not yet synchronised, that writes this tensor, and which output it is."""
        return self._producer

    @property
    def contents(self) -> Array:
        """The contents as they are."""
        return self._array


def _cast(array: Array, dtype: DataType) -> Array:
    """The values in another type; the array itself where it has that type."""
    target = get_numpy_dtype_by_datatype(dtype)
    if array.dtype == target:
        return array
    strict = switches()
    if strict.narrow_casts and (array.dtype.name, dtype) not in _SEEN_CASTS:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"from_numpy: no public source shows {array.dtype.name} for {dtype.name} (unknown 7.2)",
        )
    if strict.refuse_overflow and target.kind in "iu" and array.size:
        limits = np.iinfo(np.dtype(target).name)
        if array.min() < limits.min or array.max() > limits.max:
            raise StatusError(Code.OUT_OF_RANGE, f"from_numpy: values beyond {dtype.name} (unknown 7.2)")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(target, order="C")


def _same(source: Array, taken: Array) -> bool:
    """Whether an array still holds what was taken from it; NaN is NaN's equal here."""
    if source.shape != taken.shape:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        now = np.ascontiguousarray(source, taken.dtype)
    # Integers compare at memory speed and without the interpreter's lock; raw bytes (V4) take ten times as long with it.
    return np.array_equal(now.view(f"u{taken.itemsize}"), taken.view(f"u{taken.itemsize}"))
