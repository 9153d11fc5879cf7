"""What talks to the driver, in this process or in a worker: the same calls, whichever it is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from clipmlu.bundle.manifest import Tower
from clipmlu.clock import DEVICE_STAGES, StageClock
from clipmlu.data.feeds import Array
from clipmlu.errors import BackendUnavailableError, BundleCorruptError, DeviceError, ShapeError
from clipmlu.magicmind.client.answers import Answer, HaveFacts, OpenedFacts
from clipmlu.magicmind.driver import ALIGNMENT, CHUNK, MAX_PAYLOAD, DriverError, ProtocolError, digest_of

Result = TypeVar("Result")
Fields = dict[str, Any]
Exchange = Callable[[Fields, Sequence[Array]], Answer]
"""Sends one request and waits for its answer; raises DriverError when it is an error."""


def session_error(error: DriverError, label: str) -> Exception:
    """What a driver's error is to those who run a graph."""
    if error.kind in ("import", "device"):
        return BackendUnavailableError(f"{label}: {error.status}.")
    if error.kind == "model":
        return BundleCorruptError(f"MagicMind cannot load {', '.join(error.arguments)} of {label}: {error.status}")
    if error.kind == "shape":
        return ShapeError(f"{label}: {error.status}")
    return DeviceError(f"{label}: MagicMind failed: {error}", error.call, error.status, error.kind)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenRequest:
    """A session to open.

    Attributes:
        model: the model file.
        tower: its inputs and outputs, in its order.
        ranges: for each input, the smallest and the largest shape.
        device: index of the card.
        depth: batches in flight.
        emulated: the SDK must be the emulated one, or else the real one.
    """

    model: Path
    tower: Tower
    ranges: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    device: int = 0
    depth: int = 2
    emulated: bool = True

    def fields(self, model: str) -> Fields:
        """For the wire, with the path that the other side knows."""
        ranges = [[list(low), list(high)] for low, high in self.ranges]
        return {"op": "open", "model": model, "ranges": ranges, "device": self.device, "depth": self.depth}

    def result_shapes(self, batch: Sequence[Array]) -> list[list[int | None]]:
        """The shape of each output for a batch; None is a size that the inputs do not tell."""
        sizes: dict[str, int] = {}
        for spec, array in zip(self.tower.inputs, batch, strict=False):
            sizes.update(
                {axis: size for axis, size in zip(spec.shape, array.shape, strict=False) if isinstance(axis, str)}
            )
        return [
            [sizes.get(axis) if isinstance(axis, str) else axis for axis in spec.shape] for spec in self.tower.outputs
        ]


class Opened:
    """An open session.

    Attributes:
        request: what was asked for.
        number: the driver's name for it; changes when a worker is started again.
        facts: what the driver told.
        clock: what its batches took on the card, by stage.
    """

    def __init__(self, request: OpenRequest) -> None:
        self.request = request
        self.number = 0
        self.clock = StageClock()
        self._facts: OpenedFacts | None = None

    @property
    def facts(self) -> OpenedFacts:
        """What the driver told when it opened the session."""
        assert self._facts is not None, "it was opened"
        return self._facts

    def take(self, answer: Answer) -> None:
        """Note the driver's answer, the first one or that of a worker that replaces another.

        Raises:
            ProtocolError: it is not as expected.
        """
        facts = answer.read(OpenedFacts)
        if self._facts is not None and (facts.inputs, facts.outputs) != (self._facts.inputs, self._facts.outputs):
            raise ProtocolError("the model has other inputs or outputs than before")
        self.number = facts.session
        self._facts = facts

    def most_bytes(self, batch: Sequence[Array]) -> int:
        """How much memory the results of a batch may take on the wire."""
        total = 0
        for shape, port in zip(self.request.result_shapes(batch), self.facts.outputs, strict=False):
            sizes = [MAX_PAYLOAD if size is None else size for size in shape]
            total += math.prod(sizes) * np.dtype(port.dtype).itemsize + ALIGNMENT
        return min(total, MAX_PAYLOAD)

    def results(self, answer: Answer, batch: Sequence[Array]) -> list[Array]:
        """The results of a batch; also counts what it took.

        Raises:
            ProtocolError: they are not of the model's types and of the shapes that belong to the batch.
        """
        facts, results = answer.batch()
        wanted = list(zip([port.dtype for port in self.facts.outputs], self.request.result_shapes(batch), strict=False))
        if len(results) != len(wanted) or not all(_is_of(*each) for each in zip(results, wanted, strict=True)):
            found = [(each.dtype.name, list(each.shape)) for each in results]
            raise ProtocolError(f"the results are {_texts(found)}; expected {_texts(wanted)}")
        spent = {stage: facts.times[stage] for stage in DEVICE_STAGES if stage in facts.times}
        self.clock.add(spent, len(batch[0]))
        return results


def _is_of(result: Array, wanted: tuple[str, list[int | None]]) -> bool:
    dtype, shape = wanted
    sizes_fit = all(want in (None, size) for want, size in zip(shape, result.shape, strict=False))
    return result.dtype.name == dtype and result.ndim == len(shape) and sizes_fit


def _texts(arrays: Sequence[tuple[str, Sequence[int | None]]]) -> str:
    each = [f"{dtype} [{', '.join('any' if size is None else str(size) for size in shape)}]" for dtype, shape in arrays]
    return ", ".join(each[:8]) or "nothing"


class Peer(Protocol):
    """The driver, wherever it runs.

    Attributes:
        shares_files: paths mean the same on both sides.
    """

    shares_files: bool

    def execute(self, action: Callable[[Exchange], Result], seconds: float) -> Result:
        """Carry out a series of requests; begun again from its start when a worker is lost in the middle."""

    def open_session(self, request: OpenRequest) -> Opened:
        """Open a session."""

    def submit(self, opened: Opened, arrays: Sequence[Array]) -> Future[list[Array]]:
        """Start one batch; the arrays must not change until its result is there."""

    def close_session(self, opened: Opened) -> None:
        """Close a session, when what is in flight is done; returns at once."""

    def close(self) -> None:
        """End it all; what is in flight fails."""


def send_file(exchange: Exchange, path: Path) -> str:
    """Make a file available to a driver that may not see ours; returns what it is called there."""
    size, digest = path.stat().st_size, digest_of(str(path))
    answer = exchange({"op": "have", "path": str(path.resolve()), "size": size, "sha256": digest}, ())
    if answer.read(HaveFacts).have:
        return str(path.resolve())
    name = f"{digest[:16]}-{path.name}"
    upload_file(exchange, path, name)
    return f"upload:{name}"


def upload_file(exchange: Exchange, path: Path, name: str) -> None:
    """Send a file piece by piece; it is ``upload:<name>`` there."""
    offset = 0
    with path.open("rb") as stream:
        while (piece := stream.read(CHUNK)) or not offset:
            exchange({"op": "put", "name": name, "offset": offset}, [np.frombuffer(piece, np.uint8)]).nothing()
            offset += len(piece)
            if not piece:
                break


def fetch_file(exchange: Exchange, remote: str, path: Path, size: int) -> None:
    """Get a file piece by piece.

    Raises:
        ProtocolError: a piece is not as long as it must be.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as stream:
            while stream.tell() < size:
                rest = size - stream.tell()
                answer = exchange({"op": "get", "path": remote, "offset": stream.tell()}, ())
                stream.write(answer.piece(min(CHUNK, rest), rest))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
