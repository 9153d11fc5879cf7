"""Runtime tensors: host arrays, and results on an emulated card (api 2.13)."""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import numpy as np

from clipmlu.magicmind.emulator.devices import Device
from clipmlu.magicmind.emulator.faults import hit
from clipmlu.magicmind.emulator.jobs import Job
from clipmlu.magicmind.emulator.log import log_warning
from clipmlu.magicmind.emulator.settings import switches
from clipmlu.magicmind.emulator.status import Code, Status, StatusError, returns_status
from clipmlu.magicmind.emulator.types import Array, DataType, Dims, Shape, TensorLocation, get_numpy_dtype_by_datatype

_SEEN_CASTS = {
    ("float64", DataType.FLOAT32),  # MC clip infer.py
    ("int64", DataType.INT32),  # MC transformers; TR bert; MC-old WeNet
    ("float64", DataType.UINT8),  # MC swintransformer, resnet50_pytorch, mobilenetv3: pixels in an np.empty
    ("float64", DataType.INT32),  # MC bert_squad_pytorch: tokens in an np.empty
    ("uint8", DataType.FLOAT32),  # MC psenet_tensorflow and fsanet_tensorflow: an image of cv2.imread, of an .npz file
    ("float32", DataType.UINT8),  # a course's script, S#26019113056
}
"""Pairs of array type and tensor type in public scripts (api 2.13); all are conversions of the values."""


def poison(shape: Shape, dtype: np.dtype[Any]) -> Array:
    """Return the content of a result before it may be read: NaN, the smallest integer, or True."""
    value: Any = np.nan if dtype.kind == "f" else True if dtype.kind == "b" else np.iinfo(dtype).min
    if dtype.kind == "u":
        value = np.iinfo(dtype).max
    return np.full(tuple(max(size, 1) if size < 0 else size for size in shape), value, dtype)


class Tensor:
    """A tensor of an engine's input or output, or a separate one.

    Args:
        shape: its shape (MC-old tacotron2 mm_utils.py).
        dtype: its element type.
        location: host or card.
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
    def for_port(cls, dtype: DataType, dims: Shape, *, ranked: bool = True) -> Tensor:
        """Return an unfilled tensor for a port; one of unknown rank takes any array."""
        tensor = cls(tuple(max(size, 0) for size in dims), dtype)
        tensor._rank = len(dims) if ranked else None
        tensor._filled = False
        return tensor

    @property
    def shape(self) -> Shape:
        """The shape; ``()`` for a scalar (CV mm_infer.py)."""
        return tuple(self._array.shape)

    @returns_status
    def from_numpy(self, array: Any, /) -> None:
        """Copy content and shape of an array; the card uses the array until the next ``sync``.

        Strided arrays and ``_SEEN_CASTS`` are accepted, as in public scripts; other casts are unknown (7.2).
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
        # Keep the memory for all batches, as on a card, unless work reads it or the caller has a view of it.
        if self._pending or self._array.shape != taken.shape or np.may_share_memory(self._array, taken):
            self._array = np.empty(taken.shape, taken.dtype)
        np.copyto(self._array, taken)
        self._source = array if strict.inputs_stay_lent else None
        self._producer = None
        self._filled = True

    def memcpy_from_host(self, array: Any, /) -> Status:
        """Copy the content of an array that has as many elements, and keep the shape (MC-old tacotron2 decoder.py).

        The sample copies one number of shape (1,) to an input that is a scalar. A tensor without a shape, such as a
        variable input before its first use, takes the shape too, as ``from_numpy`` does.
        """
        if isinstance(array, np.ndarray) and array.size == self._array.size and self._rank is not None:
            array = array.reshape(self._array.shape)
        status = self.from_numpy(array)
        self._source = None  # the copy is complete
        return status

    def to(self, target: Any, /) -> Any:
        """Move to a device (MC mm_runner.py; the result is ignored) or convert to a type (MC-old tacotron2 infer.py)."""
        if isinstance(target, DataType):
            converted = Tensor((), target, self.location)
            converted._array = self.asnumpy().astype(get_numpy_dtype_by_datatype(target))
            return converted
        if not isinstance(target, Device):
            raise TypeError(f"to(): expected Device or DataType, got {type(target).__name__}")
        self.location = TensorLocation.kMLU
        return None if switches().silent_returns else self

    def asnumpy(self) -> Array:
        """Return the content on the host; before ``sync`` it is invalid (strict) or waited for (lenient), see 7.5."""
        if self._producer is not None:
            self._read_early(*self._producer)
        return self._array if switches().asnumpy_is_view else self._array.copy()

    def resize(self, shape: Any, /) -> Status | None:
        """Discard the content and set another shape (CV mm_infer.py)."""
        self._array = np.zeros(tuple(Dims(shape).GetDims()), self._array.dtype)
        return None if switches().silent_returns else Status()

    def reshape(self, shape: Any, /) -> Status | None:
        """Keep the content and set another shape (MC-old tacotron2)."""
        self._array = self._array.reshape(tuple(shape))
        return None if switches().silent_returns else Status()

    def data_address(self) -> int:
        """Return the address of the content; ``set_data_address`` takes it (MC-old tacotron2 decoder.py)."""
        _addressed.add(self)
        return int(self._array.ctypes.data)

    @returns_status
    def set_data_address(self, address: int, dims: Any, /) -> None:
        """Use memory of another tensor, and set the shape (MC-old tacotron2 decoder.py).

        Args:
            address: what ``data_address`` of a tensor returned, or an address within that tensor's content.
            dims: a list of sizes.
        """
        sizes: Shape = tuple(Dims(dims).GetDims())
        if any(size < 0 for size in sizes):
            raise StatusError(Code.INVALID_ARGUMENT, f"set_data_address: bad shape {list(sizes)}")
        if switches().check_rank and self._rank is not None and len(sizes) != self._rank:
            raise StatusError(Code.INVALID_ARGUMENT, f"set_data_address: expected {self._rank} axes, got {len(sizes)}")
        if self._pending and switches().inputs_stay_lent:
            raise StatusError(Code.FAILED_PRECONDITION, "set_data_address: an enqueue still reads this tensor")
        length = math.prod(sizes) * self._array.itemsize
        for owner in list(_addressed):
            memory = owner._array.reshape(-1).view(np.uint8)
            begin = address - int(owner._array.ctypes.data)
            if 0 <= begin <= memory.size - length:
                self._array = memory[begin : begin + length].view(self._array.dtype).reshape(sizes)
                self._source, self._producer, self._filled = None, None, True
                return
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"set_data_address: no tensor whose data_address() was read holds {length} bytes at {address:#x}",
        )

    # The following methods are the emulator's own, for contexts and queues.

    def lend(self, job: Job) -> None:
        """Mark the tensor as read by an enqueue."""
        self._pending.add(job)

    def give_back(self, job: Job) -> None:
        """Check after ``sync`` that the array did not change meanwhile, and release it."""
        self._pending.discard(job)
        if self._source is not None:
            if not _same(self._source, self._array):
                job.spoil("the array given to from_numpy was overwritten before sync")
            if not self._pending:
                self._source = None

    def _read_early(self, job: Job, index: int) -> None:
        """Wait for a result that is not synchronised yet, or warn that it is invalid."""
        if switches().poison_before_sync:
            log_warning("asnumpy", "the result is read before queue.sync() and is not valid yet (unknown 7.5)")
            return
        job.done.wait()
        if job.error is not None:
            job.error.log_none("asnumpy")
        if job.results is not None and self._producer is not None:
            self.publish(job.results[index])

    def expect(self, job: Job, index: int, shape: Shape) -> None:
        """Mark the tensor as the output of an enqueue."""
        if self._array.shape == tuple(shape) and self._filled:
            np.copyto(self._array, poison(shape, self._array.dtype))
        else:
            self._array = poison(shape, self._array.dtype)
        self._filled = True
        self.location = TensorLocation.kMLU
        self._source = None
        self._producer = (job, index)

    def publish(self, result: Array) -> None:
        """Store the result of an enqueue; an earlier ``asnumpy`` changes in place if it is a view."""
        if self._array.shape == result.shape and switches().asnumpy_is_view:
            np.copyto(self._array, result)
        else:
            self._array = np.array(result)
        self._producer = None

    @property
    def filled(self) -> bool:
        """Whether the tensor was ever filled."""
        return self._filled

    @property
    def producer(self) -> tuple[Job, int] | None:
        """The unsynchronised enqueue that writes this tensor, and the index of its output."""
        return self._producer

    @property
    def contents(self) -> Array:
        """The current content."""
        return self._array


_addressed: weakref.WeakSet[Tensor] = weakref.WeakSet()
"""Tensors whose address a script read."""


def _cast(array: Array, dtype: DataType) -> Array:
    """Convert the values to another type; return the array itself if it has that type."""
    target = get_numpy_dtype_by_datatype(dtype)
    if array.dtype == target:
        return array
    strict = switches()
    if strict.narrow_casts and (array.dtype.name, dtype) not in _SEEN_CASTS:
        raise StatusError(
            Code.INVALID_ARGUMENT,
            f"from_numpy: no public source shows {array.dtype.name} for {dtype.name} (unknown 7.2)",
        )
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(target, order="C")
    if strict.refuse_overflow and target.kind in "iu" and not np.array_equal(converted, array):
        raise StatusError(Code.OUT_OF_RANGE, f"from_numpy: values beyond {dtype.name}, or fractions (unknown 7.2)")
    return converted


def _same(source: Array, taken: Array) -> bool:
    """Return whether an array still holds the copied values; NaN equals NaN here."""
    if source.shape != taken.shape:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        now = np.asarray(source, taken.dtype, order="C")  # unlike ascontiguousarray, this keeps a scalar a scalar
    # Comparing integers runs at memory speed and without the interpreter's lock; raw bytes (V4) take ten times as long.
    return np.array_equal(now.view(f"u{taken.itemsize}"), taken.view(f"u{taken.itemsize}"))
