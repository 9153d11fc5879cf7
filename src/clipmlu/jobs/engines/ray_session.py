"""The connection to Ray: a running cluster, or a Ray on this machine for the time of a job."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clipmlu.errors import BackendUnavailableError, OptionError, reason_of
from clipmlu.files.workspace import Workspace
from clipmlu.host import available_cpus, require
from clipmlu.jobs.engines.cards import CARD_RESOURCE, Cards
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.engines.ray_cluster import RayCluster

_log = logging.getLogger(__name__)
_TEMPORARY = "/tmp"  # noqa: S108 -- as Ray's own: below a longer TMPDIR its sockets have names of more than 107 bytes
_STORE_BYTES = 128 << 20  # of a local Ray: tasks and results are small

_HOST_AND_PORT = re.compile(r"(?:ray://)?([^/:\s]+):([0-9]+)")
_ANSWER_SECONDS = 10.0

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
    with _quiet_ray():
        if options.ray_address is None:
            with _local_ray(ray, options, cards):
                yield ray
        else:
            _check_answers(ray, options.ray_address)
            with _initialized(ray, f"at '{options.ray_address}'", {"address": options.ray_address}):
                yield ray


@contextlib.contextmanager
def _local_ray(ray: Any, options: EngineOptions, cards: Cards | None) -> Iterator[None]:
    """Start Ray on this machine; a start that fails is tried once more.

    Ray waits 30 seconds for its own processes, which are not enough on a machine that is busy, or reads them from a disk for
    the first time.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(_started(ray, options, cards))
        except BackendUnavailableError as error:
            _log.warning("Ray did not start (%s); it is tried once more", error.__cause__)
            stack.enter_context(_started(ray, options, cards))
        yield


@contextlib.contextmanager
def _started(ray: Any, options: EngineOptions, cards: Cards | None) -> Iterator[None]:
    with _temporary_folder() as folder, _initialized(ray, "on this machine", _local_arguments(options, cards, folder)):
        yield


@contextlib.contextmanager
def _initialized(ray: Any, where: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """Call ``ray.init``, and ``ray.shutdown`` at the end of the block."""
    with contextlib.ExitStack() as stack:
        stack.callback(ray.shutdown)
        try:
            with _kept_signals(ray):
                ray.init(configure_logging=False, logging_level=logging.ERROR, log_to_driver=False, **arguments)
        except Exception as error:  # Ray raises all kinds, the base class too
            raise BackendUnavailableError(
                f"Cannot use Ray {where}: {' '.join(str(error).split()).rstrip('.')}. See: ray status"
            ) from error
        yield


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Yield the path of a folder that is removed at the end, or by the next process if this one is killed."""
    with Workspace(Path(_TEMPORARY if os.path.isdir(_TEMPORARY) else tempfile.gettempdir())) as workspace:
        workspace.path.chmod(0o700)
        try:
            yield workspace.new()
        finally:
            _kill_processes_of(workspace.new())
            shutil.rmtree(workspace.new(), ignore_errors=True)


def _kill_processes_of(folder: Path) -> None:
    """Kill the processes of Ray that have a temporary folder among their arguments: those that a failed start has left."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            if os.fsencode(folder) in path.read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)


def _check_answers(ray: Any, address: str) -> None:
    """Check that a host accepts connections at an address with a port: Ray would try for more than five minutes.

    For ``auto`` Ray reads its variable, or the file of the last ``ray start``, which may name a cluster that has ended.

    Raises:
        BackendUnavailableError: it does not, or there is no cluster to find.
    """
    if address == "auto":
        try:
            address = ray._private.services.get_ray_address_from_environment(address, None)
        except ConnectionError as error:
            raise BackendUnavailableError(
                "Cannot use Ray at 'auto': no cluster runs on this machine, and RAY_ADDRESS is not set. Start one (ray start --head), "
                "or give --ray-address HOST:PORT."
            ) from error
        except AttributeError:  # another release of Ray, which looks for it by itself
            return
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        return
    try:
        socket.create_connection((match[1], int(match[2])), timeout=_ANSWER_SECONDS).close()
    except (OSError, OverflowError, UnicodeError) as error:
        raise BackendUnavailableError(
            f"Cannot use Ray at '{address}': {match[1]}:{match[2]} does not answer ({reason_of(error)}). Look for the address "
            "that 'ray start --head' printed, and whether this machine can reach it."
        ) from error


def plan_actors(cluster: RayCluster, options: EngineOptions, cards: Cards | None) -> Layout:
    """Return the number of actors and their CPUs, so that they fill the machines evenly.

    Raises:
        OptionError: the cluster is too small for the processes.
    """
    nodes = [node["Resources"] for node in cluster.nodes()]
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


def _local_arguments(options: EngineOptions, cards: Cards | None, folder: Path) -> dict[str, Any]:
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
        "_temp_dir": str(folder),
    }


@contextlib.contextmanager
def _kept_signals(ray: Any) -> Iterator[None]:
    """Keep the handler of SIGTERM, which ``ray.init`` replaces: Ray's own would end the process at once, with another exit code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    utilities = ray._private.utils
    setting = getattr(utilities, "set_sigterm_handler", None)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        utilities.set_sigterm_handler = lambda _handler: None
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)  # also of another release of Ray, which sets it by itself
        if setting is not None:
            utilities.set_sigterm_handler = setting


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
