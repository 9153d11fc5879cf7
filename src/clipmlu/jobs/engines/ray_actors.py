"""Tasks are done by actors on a Ray cluster.

Ray places the actors, restarts those that die, and tells which calls were lost. Plain actors with ``ray.wait`` are Ray's own
pattern for a bounded number of calls ("Using ray.wait to limit the number of pending tasks" in its documentation).
``ray.util.ActorPool`` gives an actor one call at a time, keeps a list of all others, and may change in any release; Ray Data
would move the tasks through its object store, reads its input as a table, and cannot give an actor its own card. A lost call
is not repeated by Ray (``max_task_retries``), since it would wait for the same actor, but given to any free actor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic

from clipmlu.backends.several_devices import is_device_loss
from clipmlu.errors import SessionError
from clipmlu.jobs.engines.backlog import MOST_LOSSES, Assignment, Backlog
from clipmlu.jobs.engines.cards import CARD_RESOURCE, Cards
from clipmlu.jobs.engines.child import END_SECONDS
from clipmlu.jobs.engines.logs import log_again
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.engines.ray_cluster import RayCluster
from clipmlu.jobs.engines.ray_session import Layout, open_ray, plan_actors
from clipmlu.jobs.engines.ray_worker import CALLS, Outcome, RayWorker, WorkerPlace, package_versions
from clipmlu.jobs.work import Result, Task, Work

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 60.0
_RESTART_SECONDS = 300.0
_RESTART_POLL_SECONDS = 0.2


def run_on_ray(
    work: Work[Task, Result],
    tasks: Iterable[Task],
    options: EngineOptions,
    cards: Cards | None,
    describe: Callable[[Task], str],
) -> Iterator[Result]:
    """Do tasks on Ray and yield each result when it is there, in any order.

    Closing the iterator ends the actors.

    Args:
        work: opens the workers.
        tasks: taken lazily: an actor has at most ``CALLS`` of them.
        options: number of actors, and the address of the cluster.
        cards: the cards, of which each actor takes one; None if the bundle runs on the CPU.
        describe: names a task in messages.

    Raises:
        MissingDependencyError, BackendUnavailableError, OptionError: see ``open_ray`` and ``plan_actors``; also if a machine
            has other versions of packages.
        ClipmluError: raised by a worker.
        SessionError: no actor can start, a task was given up, or Ray cannot be reached any more.
    """
    backlog = Backlog(tasks, describe)
    with open_ray(options, cards) as ray:
        cluster = RayCluster(ray)
        actors = _Actors(cluster, backlog, work, cards, plan_actors(cluster, options, cards))
        try:
            yield from actors.run()
        finally:
            actors.end()
    backlog.check()


class _Actor(Generic[Task]):
    """An actor and its calls.

    Attributes:
        handle: Ray's handle.
        place: where it runs; None until it is open.
        ready: whether it takes tasks.
        tasks: its tasks that have no result.
        lost: names of tasks that it had when it was lost.
        unavailable_since: time of the first call in a row that failed because Ray just starts it; None if none did.
    """

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.place: WorkerPlace | None = None
        self.ready = False
        self.tasks: list[Assignment[Task]] = []
        self.lost: list[str] = []
        self.unavailable_since: float | None = None


class _Actors(Generic[Task, Result]):
    """The actors and the waiting tasks."""

    def __init__(
        self, cluster: RayCluster, backlog: Backlog[Task], work: Work[Task, Result], cards: Cards | None, layout: Layout
    ) -> None:
        self._cluster = cluster
        self._backlog = backlog
        self._calls: dict[Any, tuple[_Actor[Task], Assignment[Task] | None]] = {}  # None: the call that opens it
        options = {
            "num_cpus": layout.cpus,
            "resources": {} if cards is None else {CARD_RESOURCE: 1},
            "max_restarts": -1,
            "max_concurrency": CALLS + 1,
            "scheduling_strategy": "SPREAD",
        }
        arguments = (work, layout.cpus, cards, package_versions(), os.getcwd())
        self._actors: list[_Actor[Task]] = [
            _Actor(cluster.start(RayWorker, options, arguments)) for _ in range(layout.actors)
        ]

    def run(self) -> Iterator[Result]:
        """Yield results until no task is left."""
        for actor in self._actors:
            self._open(actor)
        while self._calls:
            done = self._cluster.wait(list(self._calls), _WAIT_SECONDS)
            if not done and not any(actor.place for actor in self._actors):
                _log.warning(
                    "no Ray worker has started in %.0f s; the job waits for free resources (ray status)", _WAIT_SECONDS
                )
            for call in done:
                yield from self._finish(call)
            self._feed()

    def end(self) -> None:
        """End all actors; those without a task get some seconds to close their sessions and remove their temporary files."""
        idle = [actor for actor in self._actors if actor.ready and not actor.tasks]
        if idle:
            with contextlib.suppress(SessionError):
                closing = [self._cluster.call(actor.handle.close) for actor in idle]
                self._cluster.wait(closing, END_SECONDS, least=len(closing))
        for actor in self._actors:
            self._cluster.kill(actor.handle)

    def _open(self, actor: _Actor[Task]) -> None:
        """Let an actor open the work; Ray repeats the call while it restarts the actor, but not without end."""
        call = self._cluster.call(actor.handle.open, max_task_retries=MOST_LOSSES - 1)
        self._calls[call] = (actor, None)

    def _feed(self) -> None:
        """Give each actor a first task, and then each a second one."""
        for count in range(CALLS):
            for actor in self._actors:
                if actor.ready and len(actor.tasks) == count and not any(each.alone for each in actor.tasks):
                    assignment = self._backlog.take(idle=not actor.tasks)
                    if assignment is not None:
                        actor.tasks.append(assignment)
                        self._calls[self._cluster.call(actor.handle.run, assignment.task)] = (actor, assignment)

    def _finish(self, call: Any) -> Iterator[Result]:
        actor, assignment = self._calls.pop(call)
        try:
            outcome: Outcome = self._cluster.get(call)
        except self._cluster.exceptions.RayTaskError as error:  # a defect of our own, with its traceback
            raise error
        except self._cluster.exceptions.RayError as error:
            self._lose(actor, assignment, error)
            return
        log_again(outcome.records)
        if outcome.error is not None:
            self._lose_card(actor, assignment, outcome.error)
        elif assignment is None:
            actor.ready, actor.place, actor.unavailable_since = True, outcome.value, None
        else:
            actor.tasks.remove(assignment)
            yield outcome.value

    def _lose(self, actor: _Actor[Task], assignment: Assignment[Task] | None, error: Exception) -> None:
        """Let the task of a lost actor wait again; when none of its calls is left, open it again."""
        if assignment is None:
            if self._restarts(actor, error):
                self._open(actor)
            else:
                self._give_up(actor, error)
            return
        actor.ready = False
        actor.tasks.remove(assignment)
        actor.lost.append(self._backlog.give_back([assignment]))
        if not actor.tasks:
            _log.warning(
                "Ray worker %s was lost (%s) with %s, which will be computed again; Ray starts it again",
                actor.place,
                type(error).__name__,
                ", ".join(actor.lost),
            )
            actor.lost = []
            self._open(actor)

    def _restarts(self, actor: _Actor[Task], error: Exception) -> bool:
        """Whether a call failed only because Ray has not yet started an actor again, which takes long on a busy machine."""
        if not isinstance(error, self._cluster.exceptions.ActorUnavailableError):
            return False
        now = time.monotonic()
        actor.unavailable_since = actor.unavailable_since or now
        time.sleep(_RESTART_POLL_SECONDS)
        return now - actor.unavailable_since < _RESTART_SECONDS

    def _lose_card(self, actor: _Actor[Task], assignment: Assignment[Task] | None, error: Exception) -> None:
        """Go on without an actor that has lost its card.

        Raises:
            Exception: the error, if it is another one, or there is no other actor.
        """
        others = [each for each in self._actors if each is not actor]
        on_card = actor.place is not None and actor.place.device is not None
        if assignment is None or not (on_card and is_device_loss(error)) or not others:
            raise error
        actor.ready = False
        actor.tasks.remove(assignment)
        actor.lost.append(self._backlog.give_back([assignment]))
        if not actor.tasks:
            _log.warning(
                "Ray worker %s has lost its card with %s, which will be computed again; %d other(s) go on: %s",
                actor.place,
                ", ".join(actor.lost),
                len(others),
                error,
            )
            self._actors = others
            self._cluster.kill(actor.handle)

    def _give_up(self, actor: _Actor[Task], error: Exception) -> None:
        self._actors.remove(actor)
        reason = str(error).strip().splitlines()[-1].strip()
        if not self._actors:
            raise SessionError(f"Ray workers cannot start: {reason}") from error
        _log.warning("a Ray worker cannot start, and %d do its work: %s", len(self._actors), reason)
