"""``run_tasks``: does tasks with the engine that the options choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable

from clipmlu.errors import OptionError
from clipmlu.host import available_cpus
from clipmlu.jobs.engines.cards import Cards
from clipmlu.jobs.engines.here import run_here
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.engines.processes import run_in_processes
from clipmlu.jobs.engines.ray_actors import run_on_ray
from clipmlu.jobs.work import MachineShare, Result, Task, Work


def run_tasks(
    work: Work[Task, Result],
    tasks: Iterable[Task],
    options: EngineOptions,
    *,
    cards: Cards | None = None,
    count: int | None = None,
    describe: Callable[[Task], str] = str,
) -> Generator[Result, None, None]:
    """Do tasks and yield the result of each when it is there, in the order of completion.

    Tasks are taken lazily, when a worker has space for them. Closing the iterator ends the workers.

    Args:
        work: opens the workers.
        tasks: the tasks; any number.
        options: the engine.
        cards: the cards that the workers share; None if the bundle runs on the CPU. See ``choose_cards``.
        count: number of tasks, if it is known: not more workers than tasks are started, and they share the whole machine.
        describe: names a task in messages.

    Raises:
        ClipmluError: raised by a worker.
        OptionError: there are more processes than cards.
        SessionError: workers cannot start, or a task was given up, because three workers in a row ended with it; all
            others are done then.
        MissingDependencyError, BackendUnavailableError: Ray is not installed, or there is no cluster at the address, or one
            of its machines has other versions of packages.
    """
    workers = options.processes
    if workers is not None and count is not None:
        workers = min(workers, max(1, count))
    if options.engine == "ray":
        yield from run_on_ray(work, tasks, dataclasses.replace(options, processes=workers), cards, describe)
    elif options.is_this_process:
        yield from run_here(work, tasks)
    else:
        yield from run_in_processes(work, tasks, split_machine(workers or 1, cards), describe)


def split_machine(count: int, cards: Cards | None) -> list[MachineShare]:
    """Return equal shares of the CPUs, and of the cards: share i has the cards i, i + count and so on.

    Raises:
        OptionError: there are fewer cards than shares.
    """
    indices = None if cards is None else cards.indices
    if indices is not None and count > len(indices):
        raise OptionError(
            f"{count} processes cannot share {len(indices)} card(s), because each needs its own; "
            f"use at most --processes {len(indices)}, or more --devices"
        )
    cpus = max(1, available_cpus() // count)
    return [
        MachineShare(cpus=cpus, devices=None if indices is None else indices[place::count]) for place in range(count)
    ]
