"""The connection to Ray: a running cluster, or a Ray on this machine for the time of a job."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

from clipmlu.errors import BackendUnavailableError, OptionError
from clipmlu.host import available_cpus, require
from clipmlu.jobs.engines.cards import CARD_RESOURCE, Cards
from clipmlu.jobs.engines.options import EngineOptions

_TEMPORARY = "/tmp"  # noqa: S108 -- as Ray's own: below a longer TMPDIR its sockets have names of more than 107 bytes
_STORE_BYTES = 128 << 20  # of a local Ray: tasks and results are small

_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",  # sends nothing home
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what Ray will do by default, and warns about
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # prints no messages of the cluster on standard output; this module logs its own
}
"""Variables that Ray reads when it is imported."""


class Layout(NamedTuple):
    """The actors of a job.

    Attributes:
        actors: their number.
        cpus: CPUs of each.
    """

    actors: int
    cpus: int


@contextlib.contextmanager
def open_ray(options: EngineOptions, cards: Cards | None) -> Iterator[Any]:
    """Connect to Ray; yields the module ``ray``.

    A connection that the program has already is used and stays. Ray that is started here ends with the block, and its
    temporary folder is removed.

    Raises:
        MissingDependencyError: Ray is not installed.
        BackendUnavailableError: there is no cluster at the address, or it has another version.
    """
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    ray = require("ray", "ray", "--engine ray")
    if ray.is_initialized():
        yield ray
        return
    with _quiet_ray(), contextlib.ExitStack() as stack:
        if options.ray_address is None:
            arguments = _local_arguments(options, cards)
            stack.callback(shutil.rmtree, arguments["_temp_dir"], ignore_errors=True)
        else:
            arguments = {"address": options.ray_address}
        stack.callback(ray.shutdown)
        try:
            with _kept_signals():
                ray.init(configure_logging=False, logging_level=logging.ERROR, log_to_driver=False, **arguments)
        except Exception as error:  # Ray raises all kinds, the base class too
            where = "on this machine" if options.ray_address is None else f"at '{options.ray_address}'"
            raise BackendUnavailableError(
                f"Cannot use Ray {where}: {' '.join(str(error).split()).rstrip('.')}. See: ray status"
            ) from error
        yield ray


def plan_actors(ray: Any, options: EngineOptions, cards: Cards | None) -> Layout:
    """Return the number of actors and their CPUs, so that they fill the machines evenly.

    Raises:
        OptionError: the cluster is too small for the processes.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    unit = "CPU" if cards is None else CARD_RESOURCE
    able = [resources for resources in nodes if resources.get(unit, 0) >= 1]
    if not able:
        raise OptionError(
            f"no machine of the Ray cluster offers the resource {unit}; start Ray on each with: "
            + ("ray start --num-cpus=N" if cards is None else f"ray start --resources='{{\"{CARD_RESOURCE}\": N}}'")
        )
    places = int(sum(resources[unit] for resources in able))
    count = options.processes or (len(able) if cards is None else places)
    if count > places:
        raise OptionError(
            f"{count} processes need a {'CPU' if cards is None else 'card'} each, and the Ray cluster has {places}; "
            f"use at most --processes {places}"
        )
    each = math.ceil(count / len(able))
    return Layout(count, max(1, int(min(resources.get("CPU", 1) for resources in able) // each)))


def _local_arguments(options: EngineOptions, cards: Cards | None) -> dict[str, Any]:
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # otherwise Ray writes one to the home folder
    cpus = max(available_cpus(), options.processes or 1)
    resources = {} if cards is None or cards.indices is None else {CARD_RESOURCE: len(cards.indices)}
    return {
        "address": "local",
        "num_cpus": cpus,
        "resources": resources,
        "include_dashboard": False,
        "object_store_memory": _STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
        "_temp_dir": tempfile.mkdtemp(prefix="clipmlu-ray-", dir=_TEMPORARY if os.path.isdir(_TEMPORARY) else None),
    }


@contextlib.contextmanager
def _kept_signals() -> Iterator[None]:
    """Keep the handler of SIGTERM, which ``ray.init`` replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def _quiet_ray() -> Iterator[None]:
    """Let Ray log errors only."""
    logger = logging.getLogger("ray")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
