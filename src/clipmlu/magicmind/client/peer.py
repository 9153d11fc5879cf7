"""The interface of the driver's clients, the same for this process and for a worker."""

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
from clipmlu.magicmind.driver.arrays import ALIGNMENT, MAX_PAYLOAD
from clipmlu.magicmind.driver.errors import DriverError, ProtocolError
from clipmlu.magicmind.driver.files import CHUNK, digest_of

Result = TypeVar("Result")
Fields = dict[str, Any]
Exchange = Callable[[Fields, Sequence[Array]], Answer]
"""Sends one request and waits for its answer; raises DriverError if the answer is an error."""


def session_error(error: DriverError, label: str) -> Exception:
    """Convert a driver's error to the exception for users of a session."""
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
        ranges: the smallest and the largest shape of each input.
        device: index of the card.
        depth: batches in flight.
        emulated: whether the SDK must be the emulated one or the real one.
    """

    model: Path
    tower: Tower
    ranges: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    device: int = 0
    depth: int = 2
    emulated: bool = True

    def fields(self, model: str) -> Fields:
        """Return the request's fields, with the model's path on the driver's side."""
        ranges = [[list(low), list(high)] for low, high in self.ranges]
        return {"op": "open", "model": model, "ranges": ranges, "device": self.device, "depth": self.depth}

    def result_shapes(self, batch: Sequence[Array]) -> list[list[int | None]]:
        """Return the shape of each output for a batch; None stands for a size that the inputs do not determine."""
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
        request: the request that opened it.
        number: the driver's number of the session; changes when a worker is replaced.
        facts: the driver's answer.
        clock: time of its batches on the card, by stage.
    """

    def __init__(self, request: OpenRequest) -> None:
        self.request = request
        self.number = 0
        self.clock = StageClock()
        self._facts: OpenedFacts | None = None

    @property
    def facts(self) -> OpenedFacts:
        """The driver's answer to opening the session."""
        assert self._facts is not None, "it was opened"
        return self._facts

    def take(self, answer: Answer) -> None:
        """Store the driver's answer, the first one or that of a replacement worker.

        Raises:
            ProtocolError: the answer is not valid.
        """
        facts = answer.read(OpenedFacts)
        if self._facts is not None and (facts.inputs, facts.outputs) != (self._facts.inputs, self._facts.outputs):
            raise ProtocolError("the model has other inputs or outputs than before")
        self.number = facts.session
        self._facts = facts

    def most_bytes(self, batch: Sequence[Array]) -> int:
        """Return the largest size in bytes of the results of a batch on the wire."""
        total = 0
        for shape, port in zip(self.request.result_shapes(batch), self.facts.outputs, strict=False):
            sizes = [MAX_PAYLOAD if size is None else size for size in shape]
            total += math.prod(sizes) * np.dtype(port.dtype).itemsize + ALIGNMENT
        return min(total, MAX_PAYLOAD)

    def results(self, answer: Answer, batch: Sequence[Array]) -> list[Array]:
        """Return the results of a batch, and add its times to the clock.

        Raises:
            ProtocolError: a result has another dtype or shape than the model and the batch require.
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
    """A connection to the driver, in this process or in a worker.

    Attributes:
        shares_files: True if paths have the same meaning on both sides.
    """

    shares_files: bool

    def execute(self, action: Callable[[Exchange], Result], seconds: float) -> Result:
        """Run a series of requests; if a worker is lost meanwhile, the whole series runs again."""

    def open_session(self, request: OpenRequest) -> Opened:
        """Open a session."""

    def submit(self, opened: Opened, arrays: Sequence[Array]) -> Future[list[Array]]:
        """Start one batch; the arrays must not change until its result is returned."""

    def close_session(self, opened: Opened) -> None:
        """Close a session after its batches in flight; returns at once."""

    def close(self) -> None:
        """Close the connection; batches in flight fail."""


def send_file(exchange: Exchange, path: Path, *, chunk: int = CHUNK) -> str:
    """Make a file available to a driver without access to it, in parts of ``chunk`` bytes; return its name there."""
    size, digest = path.stat().st_size, digest_of(str(path))
    answer = exchange({"op": "have", "path": str(path.resolve()), "size": size, "sha256": digest}, ())
    if answer.read(HaveFacts).have:
        return str(path.resolve())
    name = f"{digest[:16]}-{path.name}"
    upload_file(exchange, path, name, chunk=chunk)
    return f"upload:{name}"


def upload_file(exchange: Exchange, path: Path, name: str, *, chunk: int = CHUNK) -> None:
    """Send a file in parts of ``chunk`` bytes; its name there is ``upload:<name>``."""
    offset = 0
    with path.open("rb") as stream:
        while (piece := stream.read(chunk)) or not offset:
            exchange({"op": "put", "name": name, "offset": offset}, [np.frombuffer(piece, np.uint8)]).nothing()
            offset += len(piece)
            if not piece:
                break


def fetch_file(exchange: Exchange, remote: str, path: Path, size: int) -> None:
    """Fetch a file in parts.

    Raises:
        ProtocolError: a part has the wrong length.
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
