"""Steps: the default does nothing, and loops count their items when they are done."""

from __future__ import annotations

import pytest

from clipmlu.steps import SECONDS, StartStep, counted, no_steps
from support import StepRecorder


def test_without_a_display_a_step_does_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent: StartStep = no_steps
    with silent("calibrating", total=2, unit="batches") as outer, silent("waiting", total=1.5, unit=SECONDS) as inner:
        outer.advance()
        inner.advance(3)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_errors_of_a_step_are_those_of_the_caller() -> None:
    with pytest.raises(ZeroDivisionError), no_steps("dividing"):
        _ = 1 / 0


def test_an_item_counts_when_the_loop_is_done_with_it() -> None:
    recorder = StepRecorder()
    start: StartStep = recorder
    with start("reading", total=2, unit="images") as step:
        for item in counted("ab", step):
            recorder.events.append(item)
    assert recorder.events == ["reading (2 images)", "a", "+1", "b", "+1", "end of reading"]
