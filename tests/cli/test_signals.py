"""Signals that end a process become an exception, once, while a command runs."""

from __future__ import annotations

import os
import signal

import pytest

from clipmlu.cli._signals import Terminated, TerminationSignals


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_is_raised_once_and_its_handler_is_put_back(number: signal.Signals) -> None:
    assert signal.getsignal(number) is signal.SIG_DFL
    with TerminationSignals() as found:
        with pytest.raises(Terminated) as caught:
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # a supervisor that repeats itself, while things are cleaned up
    assert (caught.value.number, found.received) == (number, number)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_handler_of_the_program_stays() -> None:
    def mine(_number: int, _frame: object) -> None:
        seen.append(1)

    seen: list[int] = []
    earlier = signal.signal(signal.SIGTERM, mine)
    try:
        with TerminationSignals() as found:
            os.kill(os.getpid(), signal.SIGTERM)
        assert (seen, found.received, signal.getsignal(signal.SIGTERM)) == ([1], None, mine)
    finally:
        signal.signal(signal.SIGTERM, earlier)
