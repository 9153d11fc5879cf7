"""Fault injection: the syntax and effect of ``CLIPMLU_EMULATOR_FAULTS``.

The variable is a comma-separated list of ``CALL[@DEVICE]:N:KIND``. CALL is the SDK's function, counted from 1 in each
process (per device if ``@DEVICE`` is given). KIND is one of

    status       the call returns a bad Status (INTERNAL), or None if it creates an object
    oom          the same with RESOURCE_EXHAUSTED
    device_lost  the call and every later one on the same card returns UNAVAILABLE
    crash        the process ends at once, as on a segmentation fault in the vendor's library
    hang         the call never returns; for ``enqueue`` the card hangs, so ``sync`` never returns
    nan          ``enqueue`` only: the results are NaN (the smallest integer for integer outputs)
"""

from __future__ import annotations

import collections
import dataclasses
import fcntl
import functools
import os
import signal
import threading
import time
from pathlib import Path

from clipmlu.magicmind.emulator.settings import PREFIX, current
from clipmlu.magicmind.emulator.status import Code, StatusError

CALLS = (
    "parse",
    "calibrate",
    "build_model",
    "serialize_to_file",
    "deserialize_from_file",
    "active",
    "create_queue",
    "create_i_engine",
    "create_i_context",
    "create_inputs",
    "from_numpy",
    "enqueue",
    "sync",
)
KINDS = ("status", "oom", "device_lost", "crash", "hang", "nan")


@dataclasses.dataclass(frozen=True)
class Fault:
    """One planned failure: the ``number``-th ``call``, on one card or on any."""

    call: str
    device: int | None
    number: int
    kind: str

    def __str__(self) -> str:
        place = "" if self.device is None else f"@{self.device}"
        return f"{self.call}{place}:{self.number}:{self.kind}"


@functools.lru_cache(maxsize=32)
def parse_faults(text: str) -> tuple[Fault, ...]:
    """Parse the variable's value.

    Raises:
        ValueError: an entry does not have the form above.
    """
    return tuple(_parse_fault(item.strip()) for item in text.split(",") if item.strip())


def _parse_fault(item: str) -> Fault:
    parts = item.split(":")
    call, _, device = parts[0].partition("@")
    fits = len(parts) == 3 and call in CALLS and parts[1].isdigit() and parts[2] in KINDS
    if not fits or (device and not device.isdigit()) or (parts[2] == "nan" and call != "enqueue"):
        raise ValueError(
            f"{PREFIX}FAULTS holds '{item}'; expected CALL[@DEVICE]:N:KIND with CALL from {CALLS} and KIND from {KINDS}"
        )
    return Fault(call, int(device) if device else None, int(parts[1]), parts[2])


class _Counters:
    """Counts of calls and lost cards in this process; reset in a forked child."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.calls: collections.Counter[tuple[str, int | None]] = collections.Counter()
        self.lost: set[int] = set()


_counters = _Counters()


def reset() -> None:
    """Reset all counts and lost cards; for tests, and in a forked child."""
    global _counters  # noqa: PLW0603 - the counters are the process's own, like the driver's state that they stand for
    _counters = _Counters()


os.register_at_fork(after_in_child=reset)


def hit(call: str, device: int | None = None) -> str | None:
    """Count one call and inject its planned failure.

    Args:
        call: one of ``CALLS``.
        device: index of the card, or None.

    Returns:
        ``"nan"`` or ``"hang"`` for faults of an ``enqueue`` that the queue must inject, else None.

    Raises:
        StatusError: the call fails.
    """
    fault = _count(call, device)
    if fault is not None:
        if fault.kind == "crash":
            # Not sys.exit: no clean-up must run, as in a crash of the vendor's library.
            os.kill(os.getpid(), signal.SIGKILL)
        if fault.kind == "hang" and call != "enqueue":
            sleep_forever()
        if fault.kind == "device_lost" and device is not None:
            _counters.lost.add(device)
        if fault.kind == "oom":
            raise StatusError(Code.RESOURCE_EXHAUSTED, f"{call}: out of device memory (injected {fault})")
        if fault.kind in ("status", "device_lost"):
            lost = fault.kind == "device_lost"
            raise StatusError(Code.UNAVAILABLE if lost else Code.INTERNAL, f"{call}: failed (injected {fault})")
    if device is not None and device in _counters.lost:
        raise StatusError(Code.UNAVAILABLE, f"{call}: device {device} is lost")
    return None if fault is None else fault.kind


def sleep_forever() -> None:
    """Block forever."""
    while True:
        time.sleep(3600)


def _count(call: str, device: int | None) -> Fault | None:
    with _counters.lock:
        _counters.calls[call, None] += 1
        if device is not None:
            _counters.calls[call, device] += 1
        for fault in parse_faults(current().faults):
            if fault.call != call or fault.device not in (None, device):
                continue
            if _counters.calls[call, fault.device] == fault.number and record(fault):
                return fault
    return None


def record(fault: Fault) -> bool:
    """Record a fault in the log, if there is one; return False if any process has recorded it before."""
    log = current().fault_log
    if not log:
        return True
    with Path(log).open("a+", encoding="utf-8") as stream:
        fcntl.flock(
            stream, fcntl.LOCK_EX
        )  # until it is closed: two processes may come to the same call at the same time
        stream.seek(0)
        if str(fault) in stream.read().splitlines():
            return False
        stream.write(f"{fault}\n")
        stream.flush()
        os.fsync(stream.fileno())
    return True
