"""Engine and Context: loading a model onto a card, and running it (api 2.12)."""

from __future__ import annotations

import os
import time
import weakref
from typing import TYPE_CHECKING, Any, ClassVar

from clipmlu.graph.quantisation.derived import ADDED
from clipmlu.host import import_onnxruntime, limited_cpus
from clipmlu.magicmind.emulator.detection import collect_results
from clipmlu.magicmind.emulator.devices import active_device, check_device, device_lock
from clipmlu.magicmind.emulator.dump import DumpInfo, write_dump
from clipmlu.magicmind.emulator.faults import hit, sleep_forever
from clipmlu.magicmind.emulator.jobs import Feed, Job, Queue, check_process, computing
from clipmlu.magicmind.emulator.settings import current, switches
from clipmlu.magicmind.emulator.status import Code, Status, StatusError, returns_status
from clipmlu.magicmind.emulator.tensor import Tensor, poison
from clipmlu.magicmind.emulator.types import Array, Dims, Shape

if TYPE_CHECKING:
    from clipmlu.magicmind.emulator.ports import ModelInfo


class EngineOptions:
    """``Model.EngineConfig``: options of an engine.

    Attributes:
        device_type: ``"MLU"`` (MC mm_runner.py).
    """

    def __init__(self) -> None:
        self.device_type = "MLU"


def create_engine(info: ModelInfo, graph: bytes, config: EngineOptions | None) -> Engine:
    """Load a model onto the calling thread's card.

    Raises:
        StatusError: there is no such card, or the model was built for another architecture or for more clusters.
    """
    device = active_device()
    check_device(device, "create_i_engine")
    hit("create_i_engine", device)
    if config is not None and config.device_type != "MLU":
        raise StatusError(Code.INVALID_ARGUMENT, f"device_type is '{config.device_type}'; expected 'MLU'")
    arch, clusters = current().arch, current().clusters
    if arch not in info.archs:
        raise StatusError(
            Code.INVALID_ARGUMENT, f"the model was built for {', '.join(info.archs)}; device {device} is {arch}"
        )
    counts = info.archs[arch]
    if counts and min(counts) > clusters:  # an error if all counts exceed the card's (MC python_common README)
        raise StatusError(
            Code.INVALID_ARGUMENT, f"the model was built for {counts} clusters; device {device} has {clusters}"
        )
    return Engine(info, graph, device)


class Engine:
    """A loaded model, created by ``Model.create_i_engine``."""

    def __init__(self, info: ModelInfo, graph: bytes, device: int) -> None:
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # an error is raised, and logged as a Status
        options.intra_op_num_threads = current().threads or limited_cpus()
        # Several cards and the feeding threads share these CPUs, so threads must not wait actively.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if info.mode != "force_float32":
            # The mode rounds or quantises each node's result; fusing nodes would omit that.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.disable_quant_qdq", "1")
        self.info = info
        self.device = device
        self._graph = graph
        self._shapes: dict[tuple[Shape, ...], list[Shape] | None] = {}
        self._skeleton: Any = None
        try:
            self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises many types
            message = f"the graph cannot be loaded: {' '.join(str(error).split())}"
            raise StatusError(Code.INTERNAL, message) from error

    def create_i_context(self) -> Context | None:
        """Return a new context, or None."""
        try:
            hit("create_i_context", self.device)
        except StatusError as error:
            error.log_none("create_i_context")
            return None
        return Context(self)

    def compute(self, feeds: list[Array]) -> list[Array]:
        """Run the graph on host arrays."""
        names = [f"{ADDED}input_{index}" for index in range(len(feeds))]
        with computing():
            results: list[Array] = self._session.run(None, dict(zip(names, feeds, strict=True)))
        if not self.info.detections:
            return results
        named = dict(zip([output.name for output in self._session.get_outputs()], results, strict=True))
        return collect_results(named, self.info.detections, len(self.info.outputs))

    def output_shapes(self, shapes: tuple[Shape, ...]) -> list[Shape] | None:
        """Return the shapes of all outputs for given inputs, or None if they depend on the values."""
        if shapes not in self._shapes:
            self._shapes[shapes] = self._infer(shapes)
        return self._shapes[shapes]

    def _infer(self, shapes: tuple[Shape, ...]) -> list[Shape] | None:
        if all(port.ranked and port.dims == shape for port, shape in zip(self.info.inputs, shapes, strict=True)):
            fixed = [port.dims for port in self.info.outputs]
            if all(port.ranked and -1 not in port.dims for port in self.info.outputs):
                return fixed
        from clipmlu.graph.shapes import without_weights
        from clipmlu.magicmind.emulator.detection_build import add_shapes
        from clipmlu.magicmind.emulator.inference import infer_shapes

        if self._skeleton is None:
            self._skeleton = without_weights(self._graph)
        given = {f"{ADDED}input_{index}": shape for index, shape in enumerate(shapes)}
        found = infer_shapes(self._skeleton, given)
        add_shapes(found, self.info.detections, f"{ADDED}output_")
        outputs = [found[f"{ADDED}output_{index}"].shape for index in range(len(self.info.outputs))]
        known = [shape for shape in outputs if shape is not None and -1 not in shape]
        return known if len(known) == len(outputs) else None


class Context:
    """Runs one batch after the other; created by ``Engine.create_i_context``."""

    ContextDumpInfo: ClassVar[type] = DumpInfo

    def __init__(self, engine: Engine) -> None:
        # Keep the engine: public scripts drop it and use the context (bert's init_model returns context and queue
        # only), so no rule "destroy contexts first" (api 5) that these scripts obey can be checked from Python.
        self._engine = engine
        self._info = engine.info
        self._device = engine.device
        self._process = os.getpid()
        self._last_queue: weakref.ref[Queue] | None = None
        self._dump: DumpInfo | None = None

    def create_inputs(self) -> list[Tensor] | Status:
        """Return new input tensors in the model's order, or a Status on failure."""
        try:
            check_process(self._process, "create_inputs")
            hit("create_inputs", self._device)
        except StatusError as error:
            return error.log_status("create_inputs")
        return [Tensor.for_port(port.dtype, port.dims, ranked=port.ranked) for port in self._info.inputs]

    def create_outputs(
        self, inputs: list[Tensor], /, suppress_infer_shape_error: bool = False
    ) -> list[Tensor] | Status:
        """Return output tensors for filled inputs, or a Status if shapes are unknown (MC-old bert_tensorflow infer.py)."""
        try:
            check_process(self._process, "create_outputs")
            self._check_inputs("create_outputs", inputs)
            shapes = self._engine.output_shapes(tuple(tensor.shape for tensor in inputs))
        except StatusError as error:
            return error.log_status("create_outputs")
        if shapes is None:
            unknown = StatusError(Code.UNAVAILABLE, "create_outputs: the output shapes depend on the values")
            return unknown.status if suppress_infer_shape_error else unknown.log_status("create_outputs")
        return [Tensor(shape, port.dtype) for shape, port in zip(shapes, self._info.outputs, strict=True)]

    @returns_status
    def enqueue(
        self, inputs: list[Tensor], outputs: list[Tensor], queue: Queue, /, input_by_tensor_order: bool = True
    ) -> None:
        """Start one batch; the results are in ``outputs`` after ``queue.sync()``.

        An empty list is filled; a list of the right length is updated in place (MC-13 clip, resnext50, u2net, fsanet).
        """
        if not isinstance(inputs, list) or not isinstance(outputs, list) or not isinstance(queue, Queue):
            raise TypeError("enqueue(): expected (list, list, Queue)")
        check_process(self._process, "enqueue")
        trick = hit("enqueue", self._device)
        self._check_devices(queue)
        self._check_inputs("enqueue", inputs)
        shapes = self._engine.output_shapes(tuple(tensor.shape for tensor in inputs))
        self._prepare_outputs(outputs, shapes)
        feeds = [self._feed(tensor, queue) for tensor in inputs]
        job = Job(lambda: self._compute(feeds, trick), list(inputs), list(outputs))
        for index, tensor in enumerate(outputs):
            tensor.expect(job, index, shapes[index] if shapes else self._info.outputs[index].dims)
        self._last_queue = weakref.ref(queue)
        queue.submit(job)

    @returns_status
    def set_context_dump_info(self, info: DumpInfo, /) -> None:
        """Write the results of runs to files (S#33294089808)."""
        self._dump = info

    def _check_devices(self, queue: Queue) -> None:
        strict = switches()
        if queue.device != self._device:
            raise StatusError(
                Code.INVALID_ARGUMENT, f"enqueue: the queue is on device {queue.device}, the context on {self._device}"
            )
        if strict.device_per_thread and active_device() != self._device:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                f"enqueue: device {active_device()} is active in this thread, the context is on {self._device}",
            )
        last = None if self._last_queue is None else self._last_queue()
        if strict.one_queue_per_context and last is not None and last is not queue and last.busy:
            raise StatusError(Code.FAILED_PRECONDITION, "enqueue: the context has work pending on another queue")

    def _check_inputs(self, call: str, inputs: list[Tensor]) -> None:
        ports = self._info.inputs
        if len(inputs) != len(ports) or not all(isinstance(tensor, Tensor) for tensor in inputs):
            raise StatusError(Code.INVALID_ARGUMENT, f"{call}: expected {len(ports)} input tensors, got {len(inputs)}")
        for tensor, port in zip(inputs, ports, strict=True):
            if not tensor.filled:
                raise StatusError(Code.FAILED_PRECONDITION, f"{call}: input '{port.name}' was never filled")
            if tensor.dtype is not port.dtype:
                raise StatusError(
                    Code.INVALID_ARGUMENT, f"{call}: '{port.name}' is {tensor.dtype.name}, not {port.dtype.name}"
                )
            if (
                switches().check_shapes
                and port.ranked
                and not _fits(tensor.shape, port.dims, port.minimum, port.maximum)
            ):
                raise StatusError(
                    Code.OUT_OF_RANGE,
                    f"{call}: '{port.name}' has the shape {list(tensor.shape)}; the model takes {_range_text(port)}",
                )

    def _prepare_outputs(self, outputs: list[Tensor], shapes: list[Shape] | None) -> None:
        ports = self._info.outputs
        if not outputs:
            outputs.extend(Tensor.for_port(port.dtype, port.dims, ranked=port.ranked) for port in ports)
            return
        if len(outputs) != len(ports):
            raise StatusError(Code.INVALID_ARGUMENT, f"enqueue: expected {len(ports)} outputs, got {len(outputs)}")
        if shapes is not None and switches().fixed_output_lists:
            for tensor, shape, port in zip(outputs, shapes, ports, strict=True):
                if tensor.shape != shape:
                    raise StatusError(
                        Code.INVALID_ARGUMENT,
                        f"enqueue: output '{port.name}' would become {list(shape)}, the list holds {list(tensor.shape)}; "
                        "clear the list first",
                    )

    def _feed(self, tensor: Tensor, queue: Queue) -> Feed:
        """Return a function that gives the content at run time; earlier results of this queue stay on the card."""
        if tensor.producer is None:
            contents = tensor.contents
            return lambda: contents
        job, index = tensor.producer

        def wait() -> Array:
            job.done.wait()
            if job.results is None:
                raise StatusError(Code.FAILED_PRECONDITION, "enqueue: an input comes from work that failed")
            return job.results[index]

        return wait

    def _compute(self, feeds: list[Feed], trick: str | None) -> list[Array]:
        arrays = [feed() for feed in feeds]
        with device_lock(self._device):
            if trick == "hang":
                sleep_forever()
            if latency_ms := current().latency_of(self._device):
                time.sleep(latency_ms / 1000)
            results = self._engine.compute(arrays)
        if trick == "nan":
            results = [poison(array.shape, array.dtype) for array in results]
        if self._dump is not None:
            write_dump(self._dump, self._info, results)
        return results


def _fits(shape: Shape, dims: Shape, minimum: Shape | None, maximum: Shape | None) -> bool:
    if len(shape) != len(dims) or not all(want in (-1, have) for have, want in zip(shape, dims, strict=True)):
        return False
    if minimum is None or maximum is None:
        return 0 not in shape
    return all(low <= have <= high for low, have, high in zip(minimum, shape, maximum, strict=True))


def _range_text(port: Any) -> str:
    return str(Dims(port.dims)) if port.minimum is None else f"{Dims(port.minimum)} to {Dims(port.maximum)}"
