"""What the workers of a job do: a value that every engine can pass to a worker, here, in another process or on another machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Worker(Protocol[Task_contra, Result_co]):
    """Does tasks, one result for each, in order; it takes a task only when it has capacity for it."""

    def __call__(self, tasks: Iterable[Task_contra]) -> Iterator[Result_co]:
        """Yield the result of each task; closing the iterator stops the work.

        Raises:
            ClipmluError: a task cannot be done; the tasks that have no result are not done.
        """


class Work(Protocol[Task_contra, Result_co]):
    """A picklable value that opens workers; tasks and results are picklable, too."""

    def open(self) -> AbstractContextManager[Worker[Task_contra, Result_co]]:
        """Open a worker, which for instance loads a bundle once; leaving the context releases it."""


def run_here(work: Work[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Do all tasks in this process and yield the results in order."""
    with work.open() as worker:
        yield from worker(tasks)
