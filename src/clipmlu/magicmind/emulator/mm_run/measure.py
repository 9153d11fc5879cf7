"""Running a model as ``mm_run`` does: one engine for each card, and threads with a context each (S#49760091045)."""

from __future__ import annotations

import concurrent.futures
import functools
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from clipmlu.magicmind.emulator.devices import Device
from clipmlu.magicmind.emulator.jobs import Queue
from clipmlu.magicmind.emulator.mm_run.request import Request, ToolError
from clipmlu.magicmind.emulator.model import Model
from clipmlu.magicmind.emulator.runtime import Context, Engine
from clipmlu.magicmind.emulator.settings import current
from clipmlu.magicmind.emulator.status import Status
from clipmlu.magicmind.emulator.tensor import Tensor
from clipmlu.magicmind.emulator.types import Array, DataType, Shape, get_numpy_dtype_by_datatype

T = TypeVar("T")


class BatchTimes(NamedTuple):
    """Milliseconds of the stages of one batch, by this host's clock."""

    copy_in: float
    enqueue: float
    compute: float
    copy_out: float


class CardResult(NamedTuple):
    """The measurement of one card.

    Attributes:
        device: its index.
        wall_s: seconds from the first to the last batch.
        batches: times of every batch of all threads.
    """

    device: int
    wall_s: float
    batches: list[BatchTimes]


def load_model(request: Request) -> Model:
    """Read the model file.

    Raises:
        ToolError: it cannot be read.
    """
    model = Model()
    _check("CreateModel", model.deserialize_from_file(request.magicmind_model))
    return model


def input_shapes(model: Model, request: Request) -> list[Shape]:
    """Return the shape of every input.

    Raises:
        ToolError: the options do not give one shape, or one batch size, for each input; or a size stays unknown.
    """
    own = [tuple(dims.GetDims()) for dims in model.get_input_dimensions()]
    shapes = list(request.input_dims) or own
    if len(shapes) != len(own):
        raise ToolError(f"Check failed: names.size() == shapes.size(): {len(own)} inputs, {len(shapes)} --input_dims")
    if request.batch_size and len(request.batch_size) != len(shapes):
        raise ToolError(
            f"Check failed: batchs.size() == input_shapes.size(): {len(shapes)} inputs, {len(request.batch_size)} sizes after "
            f"--{request.batch_name}; give one for each input"
        )
    if request.batch_size:
        shapes = [
            (size, *shape[1:]) if shape else shape for size, shape in zip(request.batch_size, shapes, strict=True)
        ]
    for name, shape in zip(model.get_input_names(), shapes, strict=True):
        if any(size < 1 for size in shape):
            raise ToolError(f"input '{name}' has the shape {list(shape)}; give --input_dims")
    return shapes


def make_inputs(model: Model, shapes: list[Shape], request: Request) -> list[Array]:
    """Return the content of every input: that of its file, or random numbers; integers are 0 or 1, which every table has."""
    kinds = [get_numpy_dtype_by_datatype(kind) for kind in model.get_input_data_types()]
    if request.input_files:
        if len(request.input_files) != len(shapes):
            raise ToolError(f"{len(request.input_files)} --input_files for {len(shapes)} inputs")
        return [_read(*each) for each in zip(request.input_files, shapes, kinds, strict=True)]
    draw = np.random.default_rng(0)
    return [
        draw.random(shape).astype(kind) if kind.kind == "f" else draw.integers(0, 2, shape).astype(kind)
        for shape, kind in zip(shapes, kinds, strict=True)
    ]


def measure_cards(model: Model, inputs: list[Array], request: Request) -> list[CardResult]:
    """Run the model on all cards at once.

    Raises:
        ToolError: a call of the SDK failed.
    """
    return _run_threads(
        [functools.partial(_measure_card, model, inputs, request, device) for device in request.devices]
    )


def _measure_card(model: Model, inputs: list[Array], request: Request, device: int) -> CardResult:
    _activate(device)
    engine = model.create_i_engine()
    if engine is None:
        raise ToolError(f"the engine cannot be created on device {device}; the reason is in the line before")
    workers = [_Worker(engine, inputs, request, device) for _ in range(request.threads)]
    _run_threads([worker.warm_up for worker in workers])
    begin = time.perf_counter()
    _run_threads([worker.measure for worker in workers])
    wall_s = time.perf_counter() - begin
    if request.output_path is not None:
        workers[0].write_results(Path(request.output_path))
    return CardResult(device, wall_s, [times for worker in workers for times in worker.batches])


class _Worker:
    """One thread with a context and a queue of its own."""

    def __init__(self, engine: Engine, inputs: list[Array], request: Request, device: int) -> None:
        context = engine.create_i_context()
        if context is None:
            raise ToolError("the context cannot be created; the reason is in the line before")
        self._context: Context = context
        self._inputs = inputs
        self._request = request
        self._device = device
        self.batches: list[BatchTimes] = []
        self.results: list[Array] = []

    def warm_up(self) -> None:
        """Run batches until the time of the warm-up is over, one at least."""
        self._repeat(self._request.warmup, 1)

    def measure(self) -> None:
        """Run batches until both the number and the duration are reached (api 4.3)."""
        limit = current().mm_run_iterations
        self.batches = self._repeat(self._request.duration, self._request.iterations, limit)

    def write_results(self, folder: Path) -> None:
        """Write the results of the last batch as ``output<index>``.

        Raises:
            ToolError: they cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for index, array in enumerate(self.results):
                (folder / f"output{index}").write_bytes(array.tobytes())
        except OSError as error:
            raise ToolError(f"cannot write to --output_path '{folder}': {error.strerror}") from error

    def _repeat(self, duration_ms: int, iterations: int, limit: int = 0) -> list[BatchTimes]:
        times: list[BatchTimes] = []
        queue = _activate(self._device).create_queue()
        if queue is None:
            raise ToolError("the queue cannot be created; the reason is in the line before")
        end = time.perf_counter() + duration_ms / 1000
        while (len(times) < iterations or time.perf_counter() < end) and not 0 < limit <= len(times):
            times.append(self._run_batch(queue))
        return times

    def _run_batch(self, queue: Queue) -> BatchTimes:
        clock = [time.perf_counter()]
        tensors = self._context.create_inputs()
        if isinstance(tensors, Status):
            raise ToolError(f"CreateInputs: {tensors}")
        for tensor, array in zip(tensors, self._inputs, strict=True):
            _check("CopyFromHost", tensor.from_numpy(array))
        clock.append(time.perf_counter())
        outputs: list[Tensor] = []
        _check("Enqueue", self._context.enqueue(tensors, outputs, queue))
        clock.append(time.perf_counter())
        _check("Sync", queue.sync())
        clock.append(time.perf_counter())
        self.results = [np.array(tensor.asnumpy()) for tensor in outputs]
        clock.append(time.perf_counter())
        copy_in, enqueue, rest, copy_out = (1000 * (after - before) for before, after in itertools.pairwise(clock))
        return BatchTimes(copy_in, enqueue, enqueue + rest, copy_out)


def _activate(index: int) -> Device:
    device = Device()
    device.id = index
    _check(f"device {index}", device.active())
    return device


def _check(call: str, status: Status) -> None:
    if not status.ok():
        raise ToolError(f"{call}: {status}")


def _run_threads(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Run each job in a thread of its own; return their results in order, or raise the first failure."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(jobs)) as pool:
        futures = [pool.submit(job) for job in jobs]
    return [future.result() for future in futures]


def _read(path: str, shape: Shape, kind: np.dtype[np.generic]) -> Array:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ToolError(f"cannot read '{path}': {error.strerror}") from error
    wanted = int(np.prod(shape)) * kind.itemsize
    if len(content) != wanted:
        raise ToolError(f"'{path}' has {len(content)} bytes; a {kind.name} input of {list(shape)} has {wanted}")
    return np.frombuffer(content, kind).reshape(shape)


SHORT_NAMES = {DataType.FLOAT16: "HALF", DataType.FLOAT32: "FLOAT"}
"""Names of types in the vendor's tools where they differ (api 2.3)."""
