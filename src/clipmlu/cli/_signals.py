"""SIGINT (Ctrl-C), SIGTERM and SIGHUP end a command alike: finished results are kept and temporary files removed."""

from __future__ import annotations

import atexit
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_DEFAULTS = {
    getattr(signal, name): handler
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),
    )
    if hasattr(signal, name)
}
"""The handlers that are replaced."""

_QUIET_SECONDS = 2.0  # further signals within this time are ignored, so that they do not interrupt the clean-up


class Terminated(KeyboardInterrupt):
    """A signal requested the end of the process.

    Attributes:
        number: number of the signal.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class TerminationSignals:
    """Raise ``Terminated`` in the main thread if a termination signal arrives inside the block.

    A signal that is already ignored (``nohup``) stays ignored, and a handler that was set before is kept. People press Ctrl-C twice:
    after the first signal further ones are ignored for two seconds, and with ``ends_process`` also while the interpreter ends.

    Args:
        ends_process: the process ends after the block.

    Attributes:
        received: number of the first received signal, or None.
    """

    def __init__(self, *, ends_process: bool = False) -> None:
        self.received: int | None = None
        self._ends_process = ends_process
        self._last = 0.0
        self._earlier: dict[int, Any] = {}
        self._ended = False

    def __enter__(self) -> TerminationSignals:
        if threading.current_thread() is threading.main_thread():
            for number, default in _DEFAULTS.items():
                handler = signal.getsignal(number)
                if handler is default or _is_of_ended_block(handler):
                    self._earlier[number] = default
                    signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended = True
        if self.received is None or not self._ends_process:
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        moment = time.monotonic()
        if self.received is not None and moment - self._last < _QUIET_SECONDS:
            return
        if self._ended:
            self._restore()
            signal.raise_signal(number)
            return
        self.received = self.received or number
        self._last = moment
        raise Terminated(number)

    @property
    def ended(self) -> bool:
        """Whether the block has ended."""
        return self._ended


def _is_of_ended_block(handler: Any) -> bool:
    owner = getattr(handler, "__self__", None)
    return isinstance(owner, TerminationSignals) and owner.ended


def _ignore_at_end() -> None:
    """Ignore signals from here on in a process that one has ended: Python is about to reset their handlers."""
    for number in _DEFAULTS:
        if _is_of_ended_block(signal.getsignal(number)):
            signal.signal(number, signal.SIG_IGN)


atexit.register(_ignore_at_end)  # imported early, so called last
