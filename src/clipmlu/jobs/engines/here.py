"""The tasks are done in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from clipmlu.jobs.work import MachineShare, Result, Task, Work


def run_here(work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Do all tasks in this process and yield the results in order."""
    with work.open(MachineShare()) as worker:
        yield from worker(tasks)
