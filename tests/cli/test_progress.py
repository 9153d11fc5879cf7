"""Progress: rates, remaining time, what limits the speed, and where it is shown."""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import struct
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyte
import pytest

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.cli import main
from clipmlu.cli._counts import ProgressCounts, describe_elapsed, describe_seconds
from clipmlu.cli._notes import LibraryNotes, Verbosity, note, set_verbosity, warn
from clipmlu.cli._progress import ProgressView, StepDisplay
from clipmlu.cli._status import compose
from clipmlu.clock import Stage, StageTotal
from clipmlu.measure.speed.limit import PipelineSetup
from clipmlu.measure.speed.load import LoadSum, PipelineLoad
from clipmlu.steps import BYTES, SECONDS

CARD = PipelineSetup(workers=4, devices=1, cores=4, threads=4, shares_cores=False)
CPU = PipelineSetup(workers=4, devices=1, cores=4, threads=4, shares_cores=True)
ONE = PipelineSetup(workers=1, devices=1, cores=4, threads=4, shares_cores=True)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def _load(setup: PipelineSetup, images: int = 100, seconds: float = 10.0, **stages: float) -> PipelineLoad:
    totals: dict[Stage, StageTotal] = {name: StageTotal(spent, images) for name, spent in stages.items()}  # type: ignore[misc]
    return PipelineLoad(images=images, seconds=seconds, stages=totals, setup=setup)


def test_rate_remaining_time_and_errors_are_those_of_this_run() -> None:
    clock = Clock()
    counts = ProgressCounts("embedding", clock)
    counts.start(1000, 400)
    assert counts.line() == "embedding: 400 of 1000 images"
    for _ in range(10):
        clock.seconds += 1
        counts.add(images=20)
    counts.add(errors=1)
    assert counts.images_per_second == pytest.approx(20)
    assert counts.line() == "embedding: 600 of 1000 images, 20 s left, 20.0 images/s, 1 error"


def test_the_rate_follows_the_last_minutes() -> None:
    clock = Clock()
    counts = ProgressCounts("embedding", clock)
    counts.start(None, 0)
    for rate in (100, 10):
        for _ in range(300):
            clock.seconds += 1
            counts.add(images=rate)
    assert counts.images_per_second == pytest.approx(10, rel=0.1)


def test_shards_are_counted_where_the_number_of_images_is_not_known() -> None:
    counts = ProgressCounts("embedding", Clock())
    counts.start(7, 2, unit="shards")
    counts.add(shards=1, images=50)
    assert counts.line().startswith("embedding: 3 of 7 shards, ")


def test_what_limits_the_speed_is_said_in_a_few_words() -> None:
    for loads, expected in (
        ([_load(CARD, decode=38.0, compute=2.0)], "the host prepares: 95%, the card waits: 20% busy"),
        ([_load(CARD, decode=4.0, compute=9.0)], "the card computes: 90%, the host waits: 10% busy"),
        # Two workers: their seconds add up, and so do those of their stages.
        ([_load(CARD, decode=38.0, compute=2.0)] * 2, "the host prepares: 95%, the card waits: 20% busy"),
        ([_load(ONE, decode=8.0, compute=1.0)], "the host prepares: 80%, the model waits: 10% busy"),
        ([_load(CPU, decode=10.0, compute=7.5)], "the CPU: 25% preparing, 75% computing"),
        ([], None),
    ):
        total = LoadSum()
        for load in loads:
            total.add(load)
        assert total.describe() == expected


class Screen(io.StringIO):
    """A terminal: what a person sees after what was written."""

    encoding = "utf-8"  # type: ignore[assignment]

    def isatty(self) -> bool:
        return True

    @property
    def lines(self) -> list[str]:
        """Lines that are visible now, without blanks at their ends."""
        screen = pyte.Screen(int(os.environ["COLUMNS"]), 24)
        screen.set_mode(pyte.modes.LNM)
        pyte.Stream(screen).feed(self.getvalue())
        return [line.rstrip() for line in screen.display if line.strip()]


def show_on(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """Make a terminal of 80 columns standard error; called by tests, since pytest replaces it after the fixtures."""
    terminal: Any = Screen()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    return terminal  # type: ignore[no-any-return]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def display(clock: Clock) -> StepDisplay:
    """A display that the test refreshes."""
    return StepDisplay(clock, ticking=False)


def test_lines_without_a_terminal_are_rare(
    display: StepDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressView("embedding", display=display) as view:
        view.start(100_000)
        for _ in range(1000):
            clock.seconds += 0.125
            view.add(images=10, load=_load(CARD, 10, 0.125, decode=0.475, compute=0.025))
            display.refresh()
    lines = capsys.readouterr().err.splitlines()
    limit = "the host prepares: 95%, the card waits: 20% busy"
    assert len(lines) == 5
    assert lines[0] == "embedding (100000 images) ..."
    assert lines[1] == f"embedding: 2560 of 100000 images, 20 min left, 80.0 images/s, {limit}"


def test_short_runs_print_no_line(display: StepDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressView("embedding", 10, display) as view, display("loading", total=3, unit="layers"):
        view.add(images=10)
        clock.seconds += 1.9
        display.refresh()
    assert capsys.readouterr().err == ""


def test_a_terminal_shows_a_bar_with_rate_and_limit(
    display: StepDisplay, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = show_on(monkeypatch)
    monkeypatch.setenv("COLUMNS", "160")
    with ProgressView("embedding", display=display) as view:
        view.start(100)
        for _ in range(5):
            clock.seconds += 1
            view.add(images=10, load=_load(CPU, 10, 1.0, decode=1.0, compute=0.75))
        display.refresh()
    bar = "━" * 15 + "─" * 15
    assert f"embedding  {bar}  50/100 images, 5 s left, 10.0 images/s, the CPU: 25% preparing, 75% computing" in (
        screen.getvalue()
    )
    assert screen.lines == []


def test_a_step_is_shown_from_its_beginning_and_ends(
    display: StepDisplay, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = show_on(monkeypatch)
    with display("tracing the image tower"):
        assert screen.lines == ["⠙ tracing the image tower  0 s"]
        clock.seconds += 65
        display.refresh()
        assert screen.lines == ["⠹ tracing the image tower  1:05"]
    assert screen.lines == ["tracing the image tower: 65 s"]


def test_a_short_step_leaves_nothing(display: StepDisplay, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("tracing the image tower"):
        clock.seconds += 1.9
    assert screen.lines == []


def test_a_step_of_known_length_has_a_bar(display: StepDisplay, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("calibrating", total=16, unit="batches") as step:
        clock.seconds += 1
        step.advance(4)
        display.refresh()
        assert screen.lines == ["⠹ calibrating  ━━━━━━━" + "─" * 23 + "  4/16 batches, 3 s left"]


def test_bytes_are_shown_in_megabytes(display: StepDisplay, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("downloading org/name/model.safetensors", total=605_143_884, unit=BYTES) as step:
        clock.seconds += 1
        step.advance(60_514_388)
        display.refresh()
        assert screen.lines == ["⠹ downloading org/name/model.safetensors  ──────────  60.5/605.1 MB, 9 s left"]


def test_time_advances_a_step_of_seconds(display: StepDisplay, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("measuring", total=10, unit=SECONDS):
        clock.seconds += 5
        display.refresh()
        assert screen.lines == ["⠹ measuring  " + "━" * 15 + "─" * 15 + "  5/10 s"]
        clock.seconds += 50
        display.refresh()
        assert screen.lines == ["⠸ measuring  " + "━" * 30 + "  10/10 s"]


def test_notes_are_printed_above_the_step(display: StepDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("calibrating", total=16, unit="batches"):
        note("using the images of train")
        assert screen.lines == ["using the images of train"]
        display.refresh()
        assert screen.lines == ["using the images of train", "⠹ calibrating  " + "─" * 30 + "  0/16 batches"]
        note("a second one")
    assert screen.lines == ["using the images of train", "a second one"]


def test_a_step_inside_another_is_shown_with_it(display: StepDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("trial 2 of at most 9"):
        with display("calibrating", total=16, unit="batches"):
            assert screen.lines == ["⠹ trial 2 of at most 9 › calibrating  " + "─" * 25 + "  0/16 batches"]
        assert screen.lines == ["⠸ trial 2 of at most 9  0 s"]


@pytest.mark.parametrize("terminal", [True, False])
def test_after_an_error_its_line_stands_alone(
    display: StepDisplay, clock: Clock, terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def fail() -> None:
        clock.seconds += 3
        display.refresh()
        raise ZeroDivisionError

    screen = show_on(monkeypatch) if terminal else None
    with pytest.raises(ZeroDivisionError), display("trial 2"), display("calibrating", total=16):
        fail()
    note("clipmlu: division by zero")
    lines = capsys.readouterr().err.splitlines() if screen is None else screen.lines
    assert lines == [*([] if terminal else ["trial 2 ...", "calibrating (16) ..."]), "clipmlu: division by zero"]


def test_without_a_terminal_long_steps_say_that_they_run_and_how_long_they_took(
    display: StepDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with display("calibrating", total=16, unit="batches") as step:
        for _ in range(16):
            clock.seconds += 2.5
            step.advance()
            display.refresh()
    with display("tracing"):
        for _ in range(5):
            clock.seconds += 10
            display.refresh()
    assert capsys.readouterr().err.splitlines() == [
        "calibrating (16 batches) ...",
        "calibrating: 13 of 16 batches, 8 s left",
        "calibrating: 40 s",
        "tracing ...",
        "tracing: 40 s so far",
        "tracing: 50 s",
    ]


def test_a_step_that_held_the_interpreter_still_reports_its_duration(
    display: StepDisplay, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with display("building"):
        clock.seconds += 4.25
    assert capsys.readouterr().err == "building: 4.2 s\n"


def test_a_dumb_terminal_gets_lines(display: StepDisplay, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    with display("tracing"):
        clock.seconds += 3
        display.refresh()
    assert screen.getvalue() == "tracing ...\ntracing: 3.0 s\n"


def test_nothing_but_text_is_sent_to_the_terminal(display: StepDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("tracing"):
        note("a note")
    assert all(character in "\r\n" or character.isprintable() for character in screen.getvalue())


def test_the_line_fits_after_the_terminal_became_narrow(display: StepDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    shown = {}
    with display("trial 2 of at most 9"), display("calibrating", total=16, unit="batches"):
        for columns in (80, 60, 50, 40, 30, 20, 3):
            monkeypatch.setenv("COLUMNS", str(columns))
            before = len(screen.getvalue())
            display.refresh()
            shown[columns] = screen.getvalue()[before:].strip("\r ")
    assert all(len(text) <= columns - len("^C") - 1 for columns, text in shown.items()), "^C begins no other line"
    assert shown[60].endswith("trial 2 of at most 9 › calibrating  0/16 batches")
    assert shown[30] == "⠧ calibrating  0/16 batches"


def test_what_does_not_fit_is_left_out_and_not_cut() -> None:
    def composed(columns: int) -> str:
        return compose(["trial", "calibrating"], ["4/16 batches", "3 s left", "8 images/s"], 0.25, columns, 0)

    assert composed(100) == "⠋ trial › calibrating  " + "━" * 7 + "─" * 23 + "  4/16 batches, 3 s left, 8 images/s"
    assert composed(60) == "⠋ trial › calibrating  ━━──────  4/16 batches, 3 s left"
    assert composed(40) == "⠋ trial › calibrating  4/16 batches"
    assert composed(30) == "⠋ calibrating  4/16 batches"


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_commands_show_no_step(
    display: StepDisplay,
    clock: Clock,
    terminal: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    screen = show_on(monkeypatch) if terminal else None
    with LibraryNotes():
        set_verbosity(Verbosity.QUIET)
        with display("tracing"), ProgressView("evaluating", 10, display) as view:
            view.add(images=1)
            clock.seconds += 60
            display.refresh()
            warn("a warning")
    assert (capsys.readouterr().err if screen is None else screen.getvalue()) == "a warning\n"


def test_wide_characters_count_twice() -> None:
    assert compose(["读取图像"], ["1 s"], None, 15, 0) == "⠋ 读取图像  1 s"
    assert compose(["读取图像"], ["1 s"], None, 13, 0) == "⠋ 读取 …  1 s"


def test_a_display_of_ascii_needs_no_other_characters(display: StepDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    monkeypatch.setattr(Screen, "encoding", "ascii")
    with display("trial"), display("calibrating", total=2, unit="batches") as step:
        step.advance()
        display.refresh()
        assert screen.lines == ["\\ trial > calibrating  " + "#" * 15 + "-" * 15 + "  1/2 batches, 0 s left"]


def test_a_closed_stderr_ends_no_step(display: StepDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("tracing"):
        screen.close()
        display.refresh()


def test_worker_threads_advance_one_step(display: StepDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    with display("reading", total=4000, unit="images") as step, ThreadPoolExecutor(8) as pool:
        for _ in range(4000):
            pool.submit(step.advance)
        pool.shutdown()
        display.refresh()
        assert "4000/4000 images" in screen.lines[0]


def test_a_thread_refreshes_the_display_while_a_step_runs(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    display = StepDisplay(clock)
    with display("tracing"):
        clock.seconds += 7
        deadline = time.monotonic() + 20
        while "7 s" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert screen.lines == ["tracing: 7.0 s"]
    assert "tracing  7 s" in screen.getvalue()


def test_steps_that_an_interruption_left_open_are_closed(display: StepDisplay, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = show_on(monkeypatch)
    display("tracing").__enter__()
    display.close()
    display.refresh()
    assert screen.lines == []


def test_durations_have_units() -> None:
    assert [describe_seconds(value) for value in (0.4, 99, 600, 11_100)] == ["0 s", "99 s", "10 min", "3 h 5 min"]
    assert [describe_elapsed(value) for value in (0.9, 59.9, 125, 3725)] == ["0 s", "59 s", "2:05", "1:02:05"]


def test_a_command_on_a_real_terminal(
    exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    command = ["compile", str(exported.path), "--target", "cpu", "-o", str(tmp_path / "out")]
    for code, expected in ((0, "Next: clipmlu "), (1, "clipmlu: ")):
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        before = termios.tcgetattr(slave)
        with os.fdopen(slave, "w", encoding="utf-8") as terminal, ThreadPoolExecutor(1) as reader:
            written = reader.submit(_read_all, master)
            monkeypatch.setattr(sys, "stderr", terminal)
            assert main(command) == code  # the second time the output exists
            assert termios.tcgetattr(slave) == before
            terminal.close()
            text = written.result()
        os.close(master)
        screen = pyte.Screen(80, 24)
        pyte.Stream(screen).feed(text)
        lines = [line.rstrip() for line in screen.display if line.strip()]
        assert lines[0].startswith(expected)
        assert not [line for line in lines if "tower" in line or "verifying" in line], "every step has ended"
        if not code:
            assert "compiling the image tower › writing the graph  0 s" in text
            assert "checking the text tower  ──" in text


def _read_all(master: int) -> str:
    """Read what is written to a pseudo-terminal until its other end is closed."""
    content = bytearray()
    with contextlib.suppress(OSError):  # EIO: closed
        while part := os.read(master, 65536):
            content += part
    return content.decode()


def test_errors_of_the_library_are_printed_each_time_with_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with LibraryNotes():
        for _ in range(2):
            try:
                raise KeyError("lost")
            except KeyError:
                logging.getLogger("clipmlu.serve").exception("Request 1 failed")
    text = capsys.readouterr().err
    assert text.count("Request 1 failed") == 2
    assert text.count("KeyError: 'lost'") == 2
