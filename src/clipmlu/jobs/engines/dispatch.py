"""``run_tasks``: does tasks with the engine that the options choose."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence

from clipmlu.errors import OptionError
from clipmlu.host import available_cpus
from clipmlu.jobs.engines.here import run_here
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.engines.processes import run_in_processes
from clipmlu.jobs.work import MachineShare, Result, Task, Work


def run_tasks(
    work: Work[Task, Result],
    tasks: Iterable[Task],
    options: EngineOptions,
    *,
    devices: Sequence[int] | None = None,
    describe: Callable[[Task], str] = str,
) -> Generator[Result, None, None]:
    """Do tasks and yield the result of each when it is there, in the order of completion.

    Tasks are taken lazily, when a worker has space for them. Closing the iterator ends the workers.

    Args:
        work: opens the workers.
        tasks: the tasks; any number.
        options: the engine.
        devices: indices of the cards that the workers share; None for a bundle on the CPU, or for the first card.
        describe: names a task in messages.

    Raises:
        ClipmluError: raised by a worker.
        OptionError: there are more processes than cards.
        SessionError: workers cannot start, or a task was given up, because three workers in a row ended with it; all
            others are done then.
    """
    count = options.processes or 1
    if devices is not None and count > len(devices):
        raise OptionError(
            f"{count} processes cannot share {len(devices)} card(s), because each needs its own; "
            f"use at most --processes {len(devices)}, or more --devices"
        )
    if count == 1:
        yield from run_here(work, tasks)
    else:
        yield from run_in_processes(work, tasks, split_machine(count, devices), describe)


def split_machine(count: int, devices: Sequence[int] | None) -> list[MachineShare]:
    """Return equal shares of the CPUs, and of the cards: share i has the cards i, i + count and so on."""
    cpus = max(1, available_cpus() // count)
    return [
        MachineShare(cpus=cpus, devices=None if devices is None else tuple(devices[place::count]))
        for place in range(count)
    ]
