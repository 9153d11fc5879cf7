"""The tasks that wait for a worker: those of the source, and those whose worker was lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Generic

from clipmlu.errors import SessionError
from clipmlu.jobs.work import Task

MOST_LOSSES = 3
_NAMED = 5


class Assignment(Generic[Task]):
    """A task for a worker.

    Attributes:
        task: the task.
        losses: number of workers that were lost while they had it.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.losses = 0

    @property
    def alone(self) -> bool:
        """Whether its worker may have no other task, so that it is certain which task the next loss is due to."""
        return self.losses > 0


class Backlog(Generic[Task]):
    """The tasks that wait; the source is read lazily.

    A task whose worker was lost waits again, until it was lost ``MOST_LOSSES`` times: it may be the reason.

    Args:
        tasks: the source.
        describe: names a task in messages.
    """

    def __init__(self, tasks: Iterable[Task], describe: Callable[[Task], str]) -> None:
        self._exhausted = False
        self._source: Iterator[Task] = iter(tasks)
        self._describe = describe
        self._returned: deque[Assignment[Task]] = deque()
        self._failed: list[str] = []

    def take(self, *, idle: bool) -> Assignment[Task] | None:
        """Return the next task for a worker, or None.

        Args:
            idle: whether the worker has no task; only then it gets one that must be alone. While such tasks wait, other
                workers get none, so that they become idle.
        """
        if self._returned:
            return self._returned.popleft() if idle else None
        for task in self._source:
            return Assignment(task)
        self._exhausted = True
        return None

    @property
    def empty(self) -> bool:
        """Whether no task waits; False until a worker has asked for one after the last."""
        return self._exhausted and not self._returned

    def give_back(self, assignments: Iterable[Assignment[Task]]) -> str:
        """Let the tasks of a lost worker wait again, and return their names, comma-separated."""
        names = []
        for assignment in assignments:
            assignment.losses += 1
            names.append(self._describe(assignment.task))
            if assignment.losses < MOST_LOSSES:
                self._returned.append(assignment)
            else:
                self._failed.append(names[-1])
        return ", ".join(names)

    def check(self) -> None:
        """Check at the end that all tasks were done.

        Raises:
            SessionError: some were given up.
        """
        if self._failed:
            more = len(self._failed) - _NAMED
            raise SessionError(
                f"{', '.join(self._failed[:_NAMED])}{f' and {more} more' if more > 0 else ''}: {MOST_LOSSES} workers in a "
                "row were killed or crashed while they computed it, so it is given up; all others are done. Look for an "
                "image that needs too much memory, then run the same command again."
            )
