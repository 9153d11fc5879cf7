"""SIGTERM and SIGHUP end a command like Ctrl-C: finished results are kept and temporary files removed."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
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

    A signal that is already ignored (``nohup``) stays ignored, and a handler that was set before is kept.

    Attributes:
        received: number of the first received signal, or None.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._last = 0.0
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> TerminationSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is signal.SIG_DFL:
                    self._earlier[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        moment = time.monotonic()
        if self.received is not None and moment - self._last < _QUIET_SECONDS:
            return
        self.received = self.received or number
        self._last = moment
        raise Terminated(number)
