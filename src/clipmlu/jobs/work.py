"""What the workers of a job do: a value that every engine can pass to a worker, here, in another process or on another machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")
Task_contra = TypeVar("Task_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MachineShare:
    """The part of a machine that one of several workers may use.

    Attributes:
        cpus: number of threads where the caller gave none; None if the worker has all CPUs of the process.
        devices: indices of the cards that no other worker uses; None for the cards that the caller gave.
    """

    cpus: int | None = None
    devices: tuple[int, ...] | None = None


class Worker(Protocol[Task_contra, Result_co]):
    """Does tasks, one result for each, in order; it takes a task only when it has capacity for it."""

    def __call__(self, tasks: Iterable[Task_contra]) -> Generator[Result_co, None, None]:
        """Yield the result of each task; closing the generator stops the work. It can be called again after the last.

        Raises:
            ClipmluError: a task cannot be done; the tasks that have no result are not done.
        """


class Work(Protocol[Task_contra, Result_co]):
    """A picklable value that opens workers; tasks and results are picklable, too."""

    def open(self, share: MachineShare) -> AbstractContextManager[Worker[Task_contra, Result_co]]:
        """Open a worker, which for instance loads a bundle once; leaving the context releases it.

        Args:
            share: what the worker may use of its machine.
        """
