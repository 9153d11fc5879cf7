"""The backend interface: availability, compilation of a graph, and sessions that run a graph."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from clipmlu.arguments import check_fields
from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.bundle.manifest import Tower
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.clock import StageClock
from clipmlu.data.feeds import Array, CalibrationData
from clipmlu.errors import SessionError, ShapeError
from clipmlu.lifetime import Lifetime, keep_when_forked
from clipmlu.specs import (
    TEXT_AXIS,
    MluBuild,
    NaturalInt,
    NodeType,
    PositiveInt,
    Precision,
    PreprocessSpec,
    QuantisationOptions,
    TensorQuantisation,
    TensorSpec,
    TowerName,
)
from clipmlu.steps import StartStep, no_steps

Feeds = Mapping[str, Array]


class Availability(NamedTuple):
    """Whether a backend can be used on this machine.

    Attributes:
        ok: True if it can.
        version: the runtime's version, or None if it is not installed.
        reason: why it cannot be used; empty if it can.
        has_device: True if a device for running is present, not only for compiling; ``auto`` requires both.
    """

    ok: bool
    version: str | None
    reason: str = ""
    has_device: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceGraph:
    """One graph to compile.

    Attributes:
        name: name of the tower.
        path: its ONNX file.
        tower: its inputs and outputs.
        data_files: external weight files in the same directory.
    """

    name: TowerName
    path: Path
    tower: Tower
    data_files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """Options for running a graph; they are not stored in a bundle.

    Attributes:
        threads: CPU threads for one batch; 0 for the runtime's default.
        device: index of the card, for targets with several.
        one_of_several: other sessions run on other cards: this one gets a process or a thread of its own, and its
            errors name the card.
        in_flight: number of batches on the card at a time.
        worker: the process that holds the vendor's SDK; None for the environment's setting, else this process.
        busy_wait: let the threads of a CPU runtime wait actively: lowest latency if no other threads need the cores.
            False leaves the cores to other threads, such as those that decode images.
    """

    threads: NaturalInt = 0
    device: NaturalInt = 0
    one_of_several: bool = False
    in_flight: PositiveInt = 2
    worker: WorkerOptions | None = None
    busy_wait: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


OPTIONS_WITHOUT_EFFECT = ("in_flight", "busy_wait", "one_of_several")
"""Fields of ``SessionOptions`` that change no computed value; keys of stored results do not hold them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """Options for compiling one graph.

    Attributes:
        precision: arithmetic of the compiled graph.
        dynamic_shape: keep the batch axis variable.
        batch_size: rows of a batch if the shape is static; the preferred number if it is dynamic.
        max_batch: the largest batch if the shape is dynamic.
        mlu: build options for MLU cards; ignored by other backends.
        quantisation: options of the modes that quantise; the algorithm is one of the SDK's.
        node_types: maps an exact node name to ``"float32"`` or ``"float16"``; overrides the precision mode.
        calibration: maps an input name to data, for the modes that quantise; pixels are always normalised floats.
        pixels: normalisation that the compiled graph applies to its uint8 pixels; None if it takes normalised float32
            pixels, or no pixels.
        calibration_server: ``ip:port`` of a card that calibrates for a host without one.
        session: options of the compilation itself: card and worker.
        on_step: begins each step of the compilation; see ``clipmlu.steps``.
    """

    precision: Precision
    dynamic_shape: bool
    batch_size: int
    max_batch: int
    mlu: MluBuild = dataclasses.field(default_factory=MluBuild)
    quantisation: QuantisationOptions = dataclasses.field(default_factory=QuantisationOptions)
    node_types: Mapping[str, NodeType] = dataclasses.field(default_factory=dict)
    calibration: Mapping[str, CalibrationData] = dataclasses.field(default_factory=dict)
    pixels: PreprocessSpec | None = None
    calibration_server: str | None = None
    session: SessionOptions = dataclasses.field(default_factory=SessionOptions)
    on_step: StartStep = no_steps


def static_sizes(tower: Tower, options: GraphOptions) -> dict[str, int]:
    """Map each variable axis to its size; the number of texts of the fused graph is that of a build for cards."""
    axes = {size for tensor in tower.inputs for size in tensor.shape if isinstance(size, str)}
    return {axis: options.mlu.text_rows if axis == TEXT_AXIS else options.batch_size for axis in axes}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """The result of compiling a graph.

    Attributes:
        tower: file relative to the given directory, inputs and outputs.
        quantised: maps a tensor to its quantisation; empty if nothing is quantised, or if the SDK does not report it.
        versions: tool versions in addition to ``Backend.packages``; see ``Backend.sdk_versions``.
    """

    tower: Tower
    quantised: Mapping[str, TensorQuantisation] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


class PendingBatch(Protocol):
    """A batch in flight, such as a ``concurrent.futures.Future``."""

    def result(self) -> dict[str, Array]:
        """Wait for the batch and return its outputs; the caller owns the arrays."""

    def add_done_callback(self, call: Callable[[Any], object], /) -> None:
        """Call a function with one argument when the batch has ended: at once, or later on a thread of the runtime."""


class Session(abc.ABC):
    """One graph, ready to run; threads may share it.

    Attributes:
        inputs: maps a name to its spec, in the graph's order.
        outputs: maps a name to its spec, in the graph's order.
        clock: time of copying in, computing and copying out; only computing if the runtime does not copy.
    """

    def __init__(self, tower: Tower, label: str) -> None:
        self.clock = StageClock()
        self.inputs: dict[str, TensorSpec] = {spec.name: spec for spec in tower.inputs}
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in tower.outputs}
        self._label = label
        self._lifetime = Lifetime(label, "Open it again.")
        keep_when_forked(self)

    def submit(self, feeds: Feeds) -> PendingBatch:
        """Start one batch and return at once; two or more may be in flight, and they finish in order.

        Args:
            feeds: one array per input, of the spec's dtype and shape.

        Raises:
            ShapeError: an input is missing, or has another dtype or shape than the graph.
            SessionError: the session is closed, or this process was forked from the one that opened it.
        """
        self._lifetime.check()
        self.check_feeds(feeds)
        return _SessionBatch(self._start(feeds), self._lifetime, self._label)

    @property
    def restarts(self) -> int:
        """Workers of the SDK that were lost and replaced; 0 for a runtime without."""
        return 0

    def close(self) -> None:
        """Release the runtime's resources; batches in flight fail, and the session cannot be used afterwards."""
        if self._lifetime.end():
            self._release()

    def on_fork(self) -> None:  # noqa: B027 - only a session that shares something has something to do
        """Called in a forked process: release what must not be shared; the base class has nothing to release."""

    @abc.abstractmethod
    def _start(self, feeds: Feeds) -> PendingBatch:
        """Start one batch with checked feeds."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Release the runtime's resources."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run one batch, see ``submit``; return a map from output name to array, owned by the caller."""
        return self.submit(feeds).result()

    def check_feeds(self, feeds: Feeds) -> None:
        """Check that feeds fit ``inputs``.

        Raises:
            ShapeError: an input does not fit; the message gives the expected shape and dtype.
        """
        if set(feeds) != set(self.inputs):
            raise ShapeError(f"{self._label} takes the inputs {sorted(self.inputs)}; got {sorted(feeds)}.")
        for name, spec in self.inputs.items():
            array = feeds[name]
            fits = len(array.shape) == len(spec.shape) and all(
                isinstance(want, str) or have == want for have, want in zip(array.shape, spec.shape, strict=True)
            )
            if not fits or array.dtype != np.dtype(spec.dtype):
                raise ShapeError(
                    f"{self._label} takes '{name}' as {spec.dtype} {_shape_text(spec.shape)}; got {array.dtype} {_shape_text(array.shape)}."
                )

    def __enter__(self) -> Session:
        self._lifetime.check()
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self._label}: an open session cannot be copied or pickled. Pickle the model: it is loaded again by its path."
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _SessionBatch:
    """A batch in flight; waiting for it in a forked process is an error."""

    def __init__(self, pending: PendingBatch, lifetime: Lifetime, label: str) -> None:
        self._pending = pending
        self._lifetime = lifetime
        self._label = label

    def result(self) -> dict[str, Array]:
        self._lifetime.check_process()
        try:
            return self._pending.result()
        except CancelledError as error:
            raise SessionError(f"{self._label}: the session was closed before the batch began.") from error

    def add_done_callback(self, call: Callable[[Any], object], /) -> None:
        self._pending.add_done_callback(call)


class Backend(Protocol):
    """One runtime.

    Attributes:
        name: its name in manifests.
        packages: installed packages whose versions affect its results.
        emulated: True if it uses the emulated vendor SDK.
        has_cards: True if it builds for MLU cards and uses ``MluBuild`` and ``SessionOptions.device``.
    """

    name: str
    packages: tuple[str, ...]
    emulated: bool
    has_cards: bool

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """The precisions that it offers on this machine; reading this may import the runtime."""

    def why_not(self, precision: Precision) -> str:
        """Return a sentence why a precision is not available on this machine; empty without a specific reason."""

    def kernels(self, precision: Precision) -> str:
        """Which kernels compute a precision, in a few words, where this CPU decides it; else empty. May import the runtime."""

    def is_slower(self, precision: Precision) -> bool:
        """Whether a precision that it offers is measured here not to be faster than float32; searches leave it out."""

    def profile(self, precision: Precision) -> str | None:
        """Return the name of the lowering profile of its graphs, or None for the canonical graphs."""

    def probe(self) -> Availability:
        """Return whether the runtime can be used on this machine; never raises."""

    def sdk_versions(self, options: SessionOptions) -> dict[str, str]:
        """Return versions of tools that are not packages of this interpreter, as a build would record them.

        Raises:
            BackendUnavailableError: the SDK cannot be reached.
        """

    def count_devices(self, options: SessionOptions) -> int:
        """Return the number of cards that the vendor's SDK reports; 0 if the backend has no cards.

        Raises:
            BackendUnavailableError: the SDK cannot be reached.
        """

    def connected(self, options: SessionOptions) -> contextlib.AbstractContextManager[object]:
        """Return a block in which graphs that are compiled or opened share one worker or thread of the vendor's SDK.

        Without it each may start a worker, which imports the SDK. On CPUs there is nothing to share.

        Raises:
            BackendUnavailableError: the SDK cannot be reached.
        """

    def compile_tower(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        """Compile one graph into ``directory``.

        Raises:
            CompileError: the graph cannot be compiled with these options.
        """

    def open(self, model: RunnableModel, tower: TowerName, options: SessionOptions) -> Session:
        """Open a session on one graph.

        Raises:
            BackendUnavailableError: the runtime cannot be used on this machine.
            BundleCorruptError: the runtime cannot read the graph.
        """


def _shape_text(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"
