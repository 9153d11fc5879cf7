"""Works for tests of engines; they stand in a module that worker processes can import."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

from clipmlu.errors import DeviceError, InputError
from clipmlu.jobs.work import MachineShare, Worker


@dataclasses.dataclass(frozen=True)
class Squares:
    """Squares numbers; like a pipeline, a worker holds up to ``depth`` of them.

    Attributes:
        depth: numbers that a worker takes before it yields the first result.
        folder: each worker writes a file ``opened-PID`` with its share, and appends the numbers that it takes to ``taken``.
        seconds: time for a number.
        kills: maps a number to how many workers it kills.
        refused: a number that is an error.
        failing: maps a number to the exception that it raises.
        warned: a number that is logged.
        slow: a number and the seconds that it takes.
        stopped: a number at which the first worker that has it stops as by SIGSTOP.
        loses_a_card: the worker that takes a number first loses its card with it.
        least_workers: workers that must have opened before any of them yields a result.
    """

    folder: Path
    depth: int = 1
    seconds: float = 0.0
    kills: tuple[tuple[int, int], ...] = ()
    refused: int | None = None
    failing: tuple[tuple[int, Exception], ...] = ()
    warned: int | None = None
    slow: tuple[int, float] | None = None
    stopped: int | None = None
    loses_a_card: bool = False
    least_workers: int = 1

    @contextlib.contextmanager
    def open(self, share: MachineShare) -> Iterator[Worker[int, int]]:
        (self.folder / f"opened-{os.getpid()}").write_text(repr(share))
        try:
            yield lambda numbers: self._run(numbers, share)
        finally:
            (self.folder / f"released-{os.getpid()}").touch()

    def _run(self, numbers: Iterable[int], share: MachineShare) -> Generator[int, None, None]:
        held: list[int] = []
        for number in numbers:
            with (self.folder / "taken").open("a") as file:
                file.write(f"{number}\n")
            held.append(number)
            if self.loses_a_card and self._is_first():
                raise DeviceError(f"card {share.devices} is lost", "sync", "UNAVAILABLE", "device_lost")
            if len(held) == self.depth:
                yield self._square(held.pop(0))
        while held:
            yield self._square(held.pop(0))

    def _wait(self, number: int) -> None:
        while len(self.opened()) < self.least_workers:
            time.sleep(0.01)
        time.sleep(self.slow[1] if self.slow and number == self.slow[0] else self.seconds)
        if number == self.stopped and self._is_first():
            os.kill(os.getpid(), signal.SIGSTOP)

    def _is_first(self) -> bool:
        try:
            (self.folder / "lost").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _square(self, number: int) -> int:
        self._wait(number)
        for killer, times in self.kills:
            mark = self.folder / f"killed-{number}"
            with contextlib.suppress(FileNotFoundError):
                if mark.stat().st_size >= times:
                    continue
            if number == killer:
                with mark.open("a") as file:
                    file.write("x")
                os.kill(os.getpid(), signal.SIGKILL)
        if number == self.refused:
            raise InputError(f"number {number} is refused")
        for failed, error in self.failing:
            if number == failed:
                raise error
        if number == self.warned:
            logging.getLogger("clipmlu.test").warning("number %d is odd", number)
        return number * number

    def taken(self) -> list[int]:
        """Numbers that workers took, in order."""
        return list(map(int, (self.folder / "taken").read_text().split()))

    def opened(self) -> set[int]:
        """Process ids of the workers."""
        return {int(path.name.partition("-")[2]) for path in self.folder.glob("opened-*")}


class Broken:
    """Ends every worker when it opens."""

    @contextlib.contextmanager
    def open(self, share: MachineShare) -> Iterator[Worker[int, int]]:
        os._exit(7)
        yield lambda numbers: (number for number in numbers)


@dataclasses.dataclass(frozen=True)
class OneOpens:
    """Squares numbers in the first worker that opens; what the others do when they open is chosen.

    Attributes:
        squares: the work of the first worker.
        sleep_seconds: time for which the others sleep; 0 to end them at once.
    """

    squares: Squares
    sleep_seconds: float

    @contextlib.contextmanager
    def open(self, share: MachineShare) -> Iterator[Worker[int, int]]:
        try:
            (self.squares.folder / "first").touch(exist_ok=False)
        except FileExistsError:
            if not self.sleep_seconds:
                os._exit(7)
            time.sleep(self.sleep_seconds)
        with self.squares.open(share) as worker:
            yield worker
