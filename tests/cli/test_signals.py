"""Signals that end a process become an exception, once, while a command runs."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys

import pytest

from clipmlu.cli import main
from clipmlu.cli._signals import Terminated, TerminationSignals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_is_raised_once_and_its_handler_is_put_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with TerminationSignals() as found:
        with pytest.raises(Terminated) as caught:
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # somebody presses Ctrl-C twice, while things are cleaned up
        os.kill(os.getpid(), signal.SIGTERM)  # a supervisor that repeats itself
    assert (caught.value.number, found.received) == (number, number)
    assert signal.getsignal(number) is before


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_change_the_exit_code_while_the_interpreter_ends(number: signal.Signals) -> None:
    code = f"""
import os, sys
from clipmlu.cli._signals import TerminationSignals

class Last:
    kill, pid = staticmethod(os.kill), os.getpid()
    def __del__(self):
        self.kill(self.pid, {int(number)})

last = Last()
with TerminationSignals(ends_process=True) as signals:
    try:
        os.kill(os.getpid(), {int(number)})
    except KeyboardInterrupt:
        pass
os.kill(os.getpid(), {int(number)})
sys.exit(128 + signals.received)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (128 + number, "")


@pytest.mark.parametrize(("terminal", "expected"), [(True, "end\n"), (False, "passed on\nend\n")])
def test_ctrl_c_reaches_an_emulated_program_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], terminal: bool, expected: str
) -> None:
    """A terminal sends SIGINT to the program, too; here only ``emulate`` gets it, so the program must see what is passed on."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: terminal)
    script = "trap 'echo passed on' INT; sleep 0.5; kill -INT $PPID; sleep 1; echo end"  # first, emulate begins to wait
    assert main(["emulate", "--", "bash", "-c", script]) == 0
    assert capfd.readouterr().out == expected
