"""What every runtime offers: whether it can be used, how it compiles a graph, and sessions that run one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from concurrent.futures import CancelledError
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, NoReturn, Protocol

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

Feeds = Mapping[str, Array]


class Availability(NamedTuple):
    """Whether a backend can be used here.

    Attributes:
        ok: True when it can.
        version: the runtime's version, or None when it is absent.
        reason: why it cannot be used; empty when it can.
        has_device: there is something here to run on, not only to compile with; ``auto`` asks for both.
    """

    ok: bool
    version: str | None
    reason: str = ""
    has_device: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceGraph:
    """One graph to compile.

    Attributes:
        name: which tower.
        path: its ONNX file.
        tower: its inputs and outputs.
        data_files: weights that the file keeps beside it, in the same directory.
    """

    name: TowerName
    path: Path
    tower: Tower
    data_files: tuple[Path, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What is chosen when a graph is run; none of it is stored in a bundle.

    Attributes:
        threads: CPU threads for one batch; 0 leaves it to the runtime.
        device: index of the card, for targets that have several.
        in_flight: batches on the card at a time.
        worker: the process that holds the vendor's SDK; None for what the environment names, else this one.
        busy_wait: a CPU runtime's threads may spin while they wait for one another: the lowest latency while they have
            the cores for themselves. Off, they leave the cores to threads that decode images, say.
    """

    threads: NaturalInt = 0
    device: NaturalInt = 0
    in_flight: PositiveInt = 2
    worker: WorkerOptions | None = None
    busy_wait: bool = True

    def __post_init__(self) -> None:
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """What a backend needs to know to compile one graph.

    Attributes:
        precision: arithmetic of the compiled graph.
        dynamic_shape: keep the batch axis free.
        batch_size: rows of a batch when it is not; the preferred number when it is.
        max_batch: the largest batch when it is.
        mlu: how to build for MLU cards; other backends take no notice.
        quantisation: how the modes that quantise do it; the algorithm is one that the SDK knows.
        node_types: exact node name -> ``"float32"`` or ``"float16"``, whatever the precision mode says.
        calibration: input name -> data, for the modes that quantise; of pixels always normalised floats.
        pixels: how the compiled graph normalises the uint8 pixels that it takes; None for one that takes normalised
            float32 pixels, or no pixels.
        calibration_server: ``ip:port`` of a card that calibrates for a host without one.
        session: where to compile: the card and the worker.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompiledGraph:
    """What a backend made of a graph.

    Attributes:
        tower: its file, relative to the directory given, its inputs and outputs.
        quantised: tensor -> how it became integers; empty where nothing did, or where the SDK does not tell.
        versions: of what built it, beside ``Backend.packages``; see ``Backend.sdk_versions``.
    """

    tower: Tower
    quantised: Mapping[str, TensorQuantisation] = dataclasses.field(default_factory=dict)
    versions: Mapping[str, str] = dataclasses.field(default_factory=dict)


class PendingBatch(Protocol):
    """A batch in flight; ``concurrent.futures.Future`` is one."""

    def result(self) -> dict[str, Array]:
        """Wait for the batch; the arrays belong to the caller."""


class Session(abc.ABC):
    """One graph, ready to run; threads may share it.

    Attributes:
        inputs: name -> spec, in the graph's order.
        outputs: name -> spec, in the graph's order.
        clock: what copying in, computing and copying out took; a runtime that copies nothing only computes.
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
            ShapeError: an input is missing, or its dtype or shape is not what the graph takes.
            SessionError: the session was closed, or belongs to a process from which this one was forked.
        """
        self._lifetime.check()
        self.check_feeds(feeds)
        return _Guarded(self._start(feeds), self._lifetime, self._label)

    def close(self) -> None:
        """Release the runtime's resources, once; batches in flight fail, and the session cannot be used afterwards."""
        if self._lifetime.end():
            self._release()

    def on_fork(self) -> None:  # noqa: B027 - only a session that shares something has something to do
        """Give up, in a forked process, what must not be shared; here nothing."""

    @abc.abstractmethod
    def _start(self, feeds: Feeds) -> PendingBatch:
        """Start one batch, whose feeds were checked."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Release the runtime's resources."""

    def run(self, feeds: Feeds) -> dict[str, Array]:
        """Run one batch; see ``submit``. Returns output name -> array owned by the caller."""
        return self.submit(feeds).result()

    def check_feeds(self, feeds: Feeds) -> None:
        """Refuse feeds that do not fit ``inputs``.

        Raises:
            ShapeError: what is wrong with which input, and what is expected.
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


class _Guarded:
    """A batch in flight, for which no forked process waits."""

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


class Backend(Protocol):
    """One runtime.

    Attributes:
        name: its name in manifests.
        packages: the installed packages whose versions matter for its results.
        emulated: what it makes and runs is the emulated vendor SDK's.
        has_cards: it builds for MLU cards: ``MluBuild`` and ``SessionOptions.device`` mean something.
    """

    name: str
    packages: tuple[str, ...]
    emulated: bool
    has_cards: bool

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """What it can compile to here; asking may import the runtime."""

    def why_not(self, precision: Precision) -> str:
        """Why a precision is not among ``precisions`` on this machine, as a sentence; empty where there is no more to say."""

    def kernels(self, precision: Precision) -> str:
        """Which kernels compute a precision, in a few words, where this CPU decides it; else empty. May import the runtime."""

    def profile(self, precision: Precision) -> str | None:
        """Name of the lowering profile that its graphs must fit; None for the canonical graphs."""

    def probe(self) -> Availability:
        """Say whether the runtime can be used here; never raises."""

    def sdk_versions(self, options: SessionOptions) -> dict[str, str]:
        """Versions of what computes and is no installed package of this interpreter, as a build here would record them.

        Raises:
            BackendUnavailableError: there is nobody to ask.
        """

    def compile_tower(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        """Compile one graph into ``directory``.

        Raises:
            CompileError: the graph cannot be compiled as asked.
        """

    def open(self, model: RunnableModel, tower: TowerName, options: SessionOptions) -> Session:
        """Open a session on one graph.

        Raises:
            BackendUnavailableError: the runtime cannot be used here.
            BundleCorruptError: the runtime cannot read the graph.
        """


def _shape_text(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"
