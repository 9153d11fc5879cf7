"""What every runtime offers: whether it can be used, how it compiles a graph, and sessions that run one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from clipmlu.bundle import CompiledBundle, ExportedBundle, Tower
from clipmlu.errors import OptionError, ShapeError
from clipmlu.specs import Precision, TensorSpec, TowerName

Array = npt.NDArray[np.generic]
Feeds = Mapping[str, Array]


class Availability(NamedTuple):
    """Whether a backend can be used here.

    Attributes:
        ok: True when it can.
        version: the runtime's version, or None when it is absent.
        reason: why it cannot be used; empty when it can.
    """

    ok: bool
    version: str | None
    reason: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphOptions:
    """What a backend needs to know to compile one graph.

    Attributes:
        precision: arithmetic of the compiled graph.
        dynamic_shape: keep the batch axis free.
        batch_size: rows of a batch when it is not.
    """

    precision: Precision
    dynamic_shape: bool
    batch_size: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """What is chosen when a graph is run; none of it is stored in a bundle.

    Attributes:
        threads: CPU threads for one batch; 0 leaves it to the runtime.
    """

    threads: int = 0

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise OptionError(f"threads is {self.threads}; expected 0 (the runtime decides) or more")


class PendingBatch(Protocol):
    """A batch in flight; ``concurrent.futures.Future`` is one."""

    def result(self) -> dict[str, Array]:
        """Wait for the batch; the arrays belong to the caller."""


class Session(abc.ABC):
    """One graph, ready to run.

    Attributes:
        inputs: name -> spec, in the graph's order.
        outputs: name -> spec, in the graph's order.
    """

    def __init__(self, tower: Tower, label: str) -> None:
        self.inputs: dict[str, TensorSpec] = {spec.name: spec for spec in tower.inputs}
        self.outputs: dict[str, TensorSpec] = {spec.name: spec for spec in tower.outputs}
        self._label = label

    @abc.abstractmethod
    def submit(self, feeds: Feeds) -> PendingBatch:
        """Start one batch and return at once; two or more may be in flight, and they finish in order.

        Args:
            feeds: one array per input, of the spec's dtype and shape.

        Raises:
            ShapeError: an input is missing, or its dtype or shape is not what the graph takes.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release the runtime's resources; the session cannot be used afterwards."""

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
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Backend(Protocol):
    """One runtime.

    Attributes:
        name: its name in manifests.
        precisions: what it can compile to.
        packages: the installed packages whose versions matter for its results.
    """

    name: str
    precisions: tuple[Precision, ...]
    packages: tuple[str, ...]

    def probe(self) -> Availability:
        """Say whether the runtime can be used here; never raises."""

    def compile_tower(self, source: ExportedBundle, tower: TowerName, options: GraphOptions, directory: Path) -> Tower:
        """Compile one graph of ``source`` into ``directory``.

        Returns:
            The compiled graph, its file relative to ``directory``.

        Raises:
            CompileError: the graph cannot be compiled as asked.
        """

    def open(self, bundle: CompiledBundle, tower: TowerName, options: SessionOptions) -> Session:
        """Open a session on one graph.

        Raises:
            BackendUnavailableError: the runtime cannot be used here.
            BundleCorruptError: the runtime cannot read the graph.
        """


def _shape_text(shape: tuple[int | str, ...]) -> str:
    return "(" + ", ".join(str(size) for size in shape) + ")"
