"""Worker processes: results, replacement of killed ones, errors, and that nothing is left."""

from __future__ import annotations

import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmlu.errors import InputError, OptionError, SessionError
from clipmlu.jobs.engines.cards import Cards
from clipmlu.jobs.engines.dispatch import run_tasks, split_machine
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.engines.processes import run_in_processes
from clipmlu.jobs.work import MachineShare
from conftest import REPOSITORY
from engine_works import Broken, OneOpens, Squares
from support import wait_until

TWO = EngineOptions(processes=2)


def _name(number: int) -> str:
    return f"number {number}"


@pytest.mark.parametrize("depth", [1, 3, 50])
def test_every_task_has_one_result_however_many_a_worker_holds(tmp_path: Path, depth: int) -> None:
    results = list(run_tasks(Squares(tmp_path, depth), range(20), TWO))
    assert sorted(results) == [number * number for number in range(20)]


def test_tasks_are_shared_and_taken_only_when_a_worker_has_space(tmp_path: Path) -> None:
    given: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1_000_000):
            given.append(number)
            yield number

    work = Squares(tmp_path, depth=2, seconds=0.02, least_workers=2)
    results = run_tasks(work, numbers(), TWO)
    for done in range(1, 20):
        next(results)
        assert len(given) <= done + 6  # two workers with two tasks, and one more each on its way
    results.close()
    assert len(work.opened()) == 2
    assert {_ppid(pid) for pid in work.opened()} == {None}


def test_a_killed_worker_is_replaced_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = Squares(tmp_path, depth=2, kills=((5, 1),))
    assert sorted(run_tasks(work, range(12), TWO, describe=_name)) == [number * number for number in range(12)]
    [message] = [record.getMessage() for record in caplog.records]
    pid = next(pid for pid in work.opened() if f"process {pid} " in message)
    assert message.startswith(f"worker process {pid} was killed by SIGKILL with number 5")
    assert message.endswith("which will be computed again; a new one is started")


def test_a_task_that_kills_three_workers_is_given_up_and_named_and_all_others_are_done(tmp_path: Path) -> None:
    work = Squares(tmp_path, depth=3, kills=((5, 9),))
    results: list[int] = []
    with pytest.raises(SessionError, match=r"^number 5: 3 workers in a row were killed"):
        results += run_tasks(work, range(12), TWO, describe=_name)  # extends as it goes, unlike list()
    assert sorted(results) == [number * number for number in range(12) if number != 5]
    assert (tmp_path / "killed-5").read_text() == "xxx"


def test_an_error_of_a_worker_is_raised_as_it_is_and_ends_the_others(tmp_path: Path) -> None:
    work = Squares(tmp_path, refused=3, seconds=0.05)
    with pytest.raises(InputError, match=r"^number 3 is refused$"):
        list(run_tasks(work, range(1000), TWO))
    assert {_ppid(pid) for pid in work.opened()} == {None}
    assert len(work.taken()) < 100


@pytest.mark.parametrize("error", [EOFError("the file ends"), BrokenPipeError(32, "the pipe of a decoder")])
def test_an_error_of_the_work_is_not_taken_for_the_end_of_the_parent(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error), match=r"the file ends|the pipe of a decoder"):
        list(run_tasks(Squares(tmp_path, failing=((3, error),)), range(8), TWO))


@pytest.mark.slow
def test_a_stopped_worker_is_killed_and_replaced_and_a_slow_one_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = Squares(tmp_path, seconds=0.2, slow=(1, 12.0), stopped=2)
    results = run_in_processes(work, range(4), split_machine(2, None), _name, silent_seconds=8.0)
    assert sorted(results) == [0, 1, 4, 9]
    first, second = [record.getMessage() for record in caplog.records]
    assert re.match(r"worker process \d+ has not run for \d+ s, as if it was stopped, and is killed", first)
    assert second.endswith("was killed by SIGKILL with number 2, which will be computed again; a new one is started")


def test_workers_that_cannot_start_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(
        SessionError, match=r"cannot start: worker process \d+ ended with exit code 7 before it was ready"
    ):
        list(run_tasks(Broken(), range(3), TWO))


@pytest.mark.slow
def test_a_worker_that_cannot_start_is_given_up_and_the_others_do_its_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work = OneOpens(Squares(tmp_path, seconds=0.5), sleep_seconds=0)
    assert sorted(run_tasks(work, range(40), TWO)) == [number * number for number in range(40)]
    *_, last = [record.getMessage() for record in caplog.records]
    assert last.endswith("ended with exit code 7 before it was ready, the third in a row; 1 other(s) do its work")
    assert len(caplog.records) == 3


def test_the_end_does_not_wait_for_workers_that_are_still_opening(tmp_path: Path) -> None:
    started = time.monotonic()
    assert list(run_tasks(OneOpens(Squares(tmp_path), sleep_seconds=120), range(3), TWO)) == [0, 1, 4]
    assert time.monotonic() - started < 60


def test_no_process_for_want_of_open_files_is_one_line(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs limits of Unix")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(SessionError, match=r"^A worker process cannot be started: Too many open files\. Use fewer"):
            list(run_tasks(Squares(tmp_path), range(3), TWO))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_warning_of_a_worker_is_logged_in_the_parent(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    list(run_tasks(Squares(tmp_path, warned=2), range(4), TWO))
    assert [(record.name, record.levelno, record.getMessage()) for record in caplog.records] == [
        ("clipmlu.test", logging.WARNING, "number 2 is odd")
    ]


def test_workers_get_equal_shares_of_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(7)))
    shares = split_machine(3, Cards(indices=(4, 5, 6, 7)))
    assert [(share.cpus, share.devices) for share in shares] == [(2, (4, 7)), (2, (5,)), (2, (6,))]
    assert [share.devices for share in split_machine(2, None)] == [None, None]


def test_a_worker_for_each_task_at_most_and_they_share_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(7)))
    assert list(run_tasks(Squares(tmp_path), [5], EngineOptions(processes=3), count=1)) == [25]
    (share,) = [path.read_text() for path in tmp_path.glob("opened-*")]
    assert share == repr(MachineShare(cpus=7, devices=None))


def test_more_processes_than_cards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^3 processes cannot share 2 card\(s\)"):
        list(run_tasks(Squares(tmp_path), range(3), EngineOptions(processes=3), cards=Cards(indices=(0, 1))))


def _ppid(pid: int) -> int | None:
    """Parent of a process, None if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except FileNotFoundError:
        return None


SCRIPT = """
import sys
from pathlib import Path
from clipmlu.cli._signals import TerminationSignals
from clipmlu.jobs.engines.dispatch import run_tasks
from clipmlu.jobs.engines.options import EngineOptions
from engine_works import Squares

if __name__ == "__main__":
    with TerminationSignals():
        for result in run_tasks(Squares(Path(sys.argv[1]), depth=2, seconds=0.05), range(10**9), EngineOptions(processes=2)):
            print(result, flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_workers_end_with_their_parent_and_clean_up(tmp_path: Path, number: signal.Signals) -> None:
    """SIGINT goes to the whole group, as from a terminal; the others to the parent only."""
    (tmp_path / "script.py").write_text(SCRIPT)
    before = sorted(os.listdir("/dev/shm"))
    with subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY / "tests")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        while len(list(tmp_path.glob("opened-*"))) < 2:
            assert parent.stdout.readline()
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)
        else:
            os.kill(parent.pid, number)
        parent.stdout.read()
        errors = parent.stderr.read()  # to the end: until the last worker has closed it
    workers = [int(path.name.partition("-")[2]) for path in tmp_path.glob("opened-*")]
    assert len(workers) == 2
    assert all((tmp_path / f"released-{pid}").exists() for pid in workers)
    wait_until(lambda: all(_ppid(pid) is None for pid in workers))
    assert errors.count("Traceback") == (0 if number == signal.SIGKILL else 1), errors
    assert errors.count("worker process") == 0
    assert sorted(os.listdir("/dev/shm")) == before


def test_interrupts_stay_blocked_while_the_first_process_starts() -> None:
    """Python's resource tracker, which starts with it, unblocks them."""
    code = """
import multiprocessing.resource_tracker, signal
from clipmlu.jobs.engines.processes import _interrupts_blocked
with _interrupts_blocked():
    multiprocessing.resource_tracker.ensure_running()
    assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
