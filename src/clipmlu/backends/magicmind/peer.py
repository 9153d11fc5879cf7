"""What talks to the driver, in this process or in a worker: the same calls, whichever it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar

from clipmlu.backends.base import Array
from clipmlu.backends.magicmind.driver import CHUNK, DriverError, digest_of
from clipmlu.errors import BackendUnavailableError, BundleCorruptError, DeviceError, ShapeError
from clipmlu.stages import DEVICE_STAGES, StageClock

Result = TypeVar("Result")
Fields = dict[str, Any]
Exchange = Callable[[Fields, Sequence[Array]], tuple[Fields, list[Array]]]
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
        ranges: for each input, the smallest and the largest shape.
        device: index of the card.
        depth: batches in flight.
        emulated: the SDK must be the emulated one, or else the real one.
    """

    model: Path
    ranges: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    device: int = 0
    depth: int = 2
    emulated: bool = True

    def fields(self, model: str) -> Fields:
        """For the wire, with the path that the other side knows."""
        ranges = [[list(low), list(high)] for low, high in self.ranges]
        return {"op": "open", "model": model, "ranges": ranges, "device": self.device, "depth": self.depth}


class Opened:
    """An open session.

    Attributes:
        request: what was asked for.
        number: the driver's name for it; changes when a worker is started again.
        facts: what the driver told: ``inputs``, ``outputs``, ``depth``, ``warnings``.
        clock: what its batches took on the card, by stage.
    """

    def __init__(self, request: OpenRequest) -> None:
        self.request = request
        self.number = 0
        self.facts: Fields = {}
        self.clock = StageClock()

    def take(self, facts: Fields) -> None:
        """Note the driver's answer."""
        self.number = int(facts["session"])
        self.facts = facts

    def count(self, answer: Fields, rows: int) -> None:
        """Note what a batch took, where the driver tells: one of an earlier version does not.

        Args:
            answer: the header of its answer.
            rows: rows of the batch.
        """
        times = answer.get("times")
        if isinstance(times, dict):
            spent = {
                stage: float(times[stage]) for stage in DEVICE_STAGES if isinstance(times.get(stage), (int, float))
            }
            self.clock.add(spent, rows)


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
    answer, _ = exchange({"op": "have", "path": str(path.resolve()), "size": size, "sha256": digest}, ())
    if answer.get("have"):
        return str(path.resolve())
    name = f"{digest[:16]}-{path.name}"
    upload_file(exchange, path, name)
    return f"upload:{name}"


def upload_file(exchange: Exchange, path: Path, name: str) -> None:
    """Send a file piece by piece; it is ``upload:<name>`` there."""
    import numpy as np

    offset = 0
    with path.open("rb") as stream:
        while (piece := stream.read(CHUNK)) or not offset:
            exchange({"op": "put", "name": name, "offset": offset}, [np.frombuffer(piece, np.uint8)])
            offset += len(piece)
            if not piece:
                break


def fetch_file(exchange: Exchange, remote: str, path: Path, size: int) -> None:
    """Get a file piece by piece.

    Raises:
        DriverError: it is not as long as announced.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        with temporary.open("wb") as stream:
            while stream.tell() < size:
                _, (piece,) = exchange({"op": "get", "path": remote, "offset": stream.tell()}, ())
                if not piece.size:
                    raise DriverError("get", f"'{remote}' ends at {stream.tell()} of {size} bytes", kind="unexpected")
                stream.write(piece.tobytes())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
