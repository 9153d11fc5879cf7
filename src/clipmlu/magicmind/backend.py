"""The MagicMind backends: MLU cards, and the emulated SDK."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Any

from clipmlu.backends.base import Availability, CompiledGraph, GraphOptions, Session, SessionOptions, SourceGraph
from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.errors import BackendUnavailableError, BundleCorruptError
from clipmlu.lifetime import keep_when_forked
from clipmlu.magicmind.build import BuildRecord, build_graph, count_cards, read_record, read_sdk_versions
from clipmlu.magicmind.client.local import LocalPeer
from clipmlu.magicmind.client.options import PYTHON_VARIABLE, WORKER_VARIABLE, worker_from_environment
from clipmlu.magicmind.client.peer import OpenRequest, Peer
from clipmlu.magicmind.client.worker_client import WorkerClient
from clipmlu.magicmind.driver.errors import DriverError
from clipmlu.magicmind.driver.sdk import load_sdk
from clipmlu.magicmind.session import MagicMindSession
from clipmlu.specs import VENDOR_PRECISIONS, Precision, TowerName

_ROOT = "magicmind"


class MagicMindBackend:
    """Builds and runs with the vendor's SDK, in this process or in a worker; see ``Backend``.

    Args:
        devices: folder of the driver's device files.
    """

    name = "magicmind"
    precisions = VENDOR_PRECISIONS
    packages: tuple[str, ...] = ()  # the SDK is not an installed package; see sdk_versions
    emulated = False
    has_cards = True

    def __init__(self, *, devices: Path = Path("/dev")) -> None:
        self._devices = devices
        self._peers = _Peers(self._local_peer, thread_per_card=self.emulated)

    def why_not(self, precision: Precision) -> str:
        """Return an empty text: the SDK's precisions do not depend on the machine."""
        return ""

    def kernels(self, precision: Precision) -> str:
        """Return an empty text: the card computes."""
        return ""

    def is_slower(self, precision: Precision) -> bool:
        """Return False: the speed of a card is not measured here."""
        return False

    def profile(self, precision: Precision) -> str | None:
        """Return the MagicMind profile: all graphs are lowered."""
        return "magicmind"

    def probe(self) -> Availability:
        """Return where the SDK is, without importing it or starting a worker."""
        worker = worker_from_environment()
        if worker is not None:
            return Availability(True, f"worker {worker}")
        if real_sdk_is_importable():
            return Availability(True, "in this process", has_device=any(self._devices.glob("cambricon_dev*")))
        return Availability(
            False,
            None,
            f"the package 'magicmind' is not importable here and no worker is named; set {PYTHON_VARIABLE} to the "
            f"interpreter of the vendor's environment, or {WORKER_VARIABLE} to a worker's address",
        )

    def sdk_versions(self, options: SessionOptions) -> dict[str, str]:
        """Return the versions of the SDK and the driver, asked from the worker or this process."""
        with self._peers.lease(self._endpoint(options), options.device) as peer:
            return read_sdk_versions(peer)

    def count_devices(self, options: SessionOptions) -> int:
        """Return the number of cards that the worker or this process sees."""
        with self._peers.lease(self._endpoint(options), options.device) as peer:
            return count_cards(peer)

    def connected(self, options: SessionOptions) -> contextlib.AbstractContextManager[object]:
        """Return a block in which a worker, or this process's thread, stays for the next graph; see ``Backend.connected``."""
        return self._peers.lease(self._endpoint(options), options.device)

    def compile_tower(self, graph: SourceGraph, options: GraphOptions, directory: Path) -> CompiledGraph:
        """Build one graph; see ``Backend.compile_tower``.

        Args:
            graph: the graph, lowered to the target's profile.
            options: precision, shapes, and build options.
            directory: folder of the model file and of the build record beside it.

        Raises:
            CompileError: the SDK cannot build the graph with these options.
            CalibrationError: the calibration data are missing, or do not fit.
            BackendUnavailableError: there is no SDK.
        """
        session = options.session
        with self._peers.lease(self._endpoint(session), session.device) as peer:
            return build_graph(peer, graph, options, directory, emulated=self.emulated)

    def open(self, model: RunnableModel, tower: TowerName, options: SessionOptions) -> Session:
        """Open a session on one graph; see ``Backend.open``."""
        card = f", card {options.device}" if options.one_of_several else ""
        label = f"Bundle '{model.path}' ({tower} tower{card})"
        path = model.tower_path(tower)
        record = read_record(path)
        self._check_kind(record, path, label)
        endpoint = self._endpoint(options)
        request = OpenRequest(
            model=path,
            tower=model.tower(tower),
            ranges=record.ranges(),
            device=options.device,
            depth=options.in_flight,
            emulated=self.emulated,
        )
        peer = self._peers.acquire(endpoint, options.device)
        return MagicMindSession(
            model.tower(tower), label, peer, request, lambda: self._peers.release(endpoint, options.device)
        )

    def _endpoint(self, options: SessionOptions) -> WorkerOptions | None:
        """Return the worker to use, or None for this process.

        One of several cards always gets a worker: it is not known whether several threads may call the SDK (api 7.7).

        Raises:
            BackendUnavailableError: neither is available.
        """
        worker = options.worker or worker_from_environment()
        if worker is None:
            availability = self.probe()
            if not availability.ok:
                raise BackendUnavailableError(f"MagicMind cannot be used here: {availability.reason}.")
            if options.one_of_several:
                return WorkerOptions(python=sys.executable)
        return worker

    def _local_peer(self) -> Peer:
        return LocalPeer(load_sdk)

    def _check_kind(self, record: BuildRecord, path: Path, label: str) -> None:
        if record.emulated:
            raise BackendUnavailableError(
                f"{label}: '{path.name}' was built by the emulated SDK and runs on no card. Compile it with --target mlu."
            )


class EmulatedMagicMindBackend(MagicMindBackend):
    """The backend of the emulated SDK, which computes on this CPU; for tests and development, never chosen by ``auto``.

    Args:
        in_process: run the emulator in this process; else in a worker, like the real SDK.
    """

    name = "magicmind-emulated"
    packages = ("onnxruntime",)
    emulated = True

    def __init__(self, *, in_process: bool = True) -> None:
        super().__init__()
        self._in_process = in_process

    def probe(self) -> Availability:
        """Look for the packages that the emulator needs, without importing them."""
        for package, remedy in (("onnxruntime", "onnxruntime"), ("onnx", "'clipmlu[compile]'")):
            if util.find_spec(package) is None:
                return Availability(False, None, f"the package '{package}' is not installed; pip install {remedy}")
        if self._in_process and (problem := _real_sdk_is_loaded()):
            return Availability(False, None, problem)
        return Availability(True, f"emulated, on onnxruntime {metadata.version('onnxruntime')}")

    def _endpoint(self, options: SessionOptions) -> WorkerOptions | None:
        availability = self.probe()
        if not availability.ok:
            raise BackendUnavailableError(f"The emulated MagicMind SDK cannot be used here: {availability.reason}.")
        if options.worker is not None:
            return options.worker
        return None if self._in_process else emulated_worker()

    def _local_peer(self) -> Peer:
        return LocalPeer(_load_for_driver)

    def _check_kind(self, record: BuildRecord, path: Path, label: str) -> None:
        from clipmlu.magicmind.emulator import is_emulated_model

        if not record.emulated or not is_emulated_model(path):
            raise BundleCorruptError(
                f"The emulated SDK cannot load '{path}' of {label}: it was not written by it. Compile the bundle again."
            )


def emulated_worker(**settings: Any) -> WorkerOptions:
    """Return options for a worker with the emulated SDK and this interpreter.

    Args:
        settings: settings of the emulator, such as ``mode="lenient"``; see ``emulated_environment``.
    """
    from clipmlu.magicmind.emulator import emulated_environment

    environment = emulated_environment(os.environ, **settings)
    source = str(Path(__file__).resolve().parents[2])  # clipmlu itself, if it is not installed
    environment["PYTHONPATH"] = os.pathsep.join([environment["PYTHONPATH"], source])
    return WorkerOptions(python=sys.executable, environment=environment)


def load_emulated_sdk() -> Any:
    """Import the emulated ``magicmind.python.runtime``; afterwards neither it nor its path is visible to other imports.

    Raises:
        DriverError: the real SDK is already imported in this process.
    """
    from clipmlu.magicmind.emulator import site_path

    with _LOADING:
        if problem := _real_sdk_is_loaded():
            raise DriverError("import magicmind.python.runtime", problem, kind="import")
        before = {name for name in list(sys.modules) if _is_sdk(name)}  # a copy: other threads import, too
        sys.path.insert(0, str(site_path()))
        try:
            return load_sdk()
        finally:
            sys.path.remove(str(site_path()))
            for name in [name for name in list(sys.modules) if _is_sdk(name) and name not in before]:
                del sys.modules[name]


def _load_for_driver() -> Any:
    """Import the emulated SDK for the driver's thread, which raises every bad Status as an error."""
    from clipmlu.magicmind.emulator.log import hide_statuses

    hide_statuses()
    return load_emulated_sdk()


_LOADING = threading.Lock()


def _is_sdk(module: str) -> bool:
    return module.partition(".")[0] == _ROOT


def real_sdk_is_importable() -> bool:
    """Return whether ``import magicmind`` would find a package other than the emulated one; nothing is imported."""
    from clipmlu.magicmind.emulator import site_path

    try:
        found = util.find_spec(_ROOT)
    except (ImportError, ValueError):
        return False
    origins = [] if found is None else [found.origin, *(found.submodule_search_locations or ())]
    return found is not None and not any(Path(each).resolve().is_relative_to(site_path()) for each in origins if each)


def _emulated_sdk_is_loaded() -> bool:
    from clipmlu.magicmind.emulator import site_path

    file = getattr(sys.modules.get(_ROOT), "__file__", None)
    return file is not None and Path(file).resolve().is_relative_to(site_path())


def _real_sdk_is_loaded() -> str:
    """Return why the emulator cannot be loaded in this process, or an empty text."""
    if _ROOT not in sys.modules or _emulated_sdk_is_loaded():
        return ""
    return "another 'magicmind' is imported in this process; use a worker, or a process of its own"


class _Peers:
    """One peer for each worker and card, shared by its sessions and closed with the last of them.

    Args:
        make_local: creates a peer in this process.
        thread_per_card: in this process each card has a peer, which is a thread; else one thread makes all calls.
    """

    def __init__(self, make_local: Callable[[], Peer], *, thread_per_card: bool) -> None:
        self._make_local = make_local
        self._thread_per_card = thread_per_card
        self._lock = threading.Lock()
        self._peers: dict[tuple[str, int], tuple[Peer, int]] = {}
        keep_when_forked(self)

    def on_fork(self) -> None:
        """Discard the peers in a forked process; the parent process keeps them."""
        self._lock = threading.Lock()
        self._peers = {}

    def acquire(self, endpoint: WorkerOptions | None, device: int) -> Peer:
        """Return the peer, and create it if there is none."""
        key = self._key(endpoint, device)
        with self._lock:
            peer, users = self._peers.get(key, (None, 0))
            if peer is None:
                peer = self._make_local() if endpoint is None else WorkerClient(endpoint)
            self._peers[key] = (peer, users + 1)
            return peer

    def release(self, endpoint: WorkerOptions | None, device: int) -> None:
        """Release one use of the peer; close it after the last one."""
        key = self._key(endpoint, device)
        with self._lock:
            peer, users = self._peers.pop(key)
            if users > 1:
                self._peers[key] = (peer, users - 1)
                return
        peer.close()

    @contextlib.contextmanager
    def lease(self, endpoint: WorkerOptions | None, device: int) -> Iterator[Peer]:
        """Yield the peer for the time of a block."""
        peer = self.acquire(endpoint, device)
        try:
            yield peer
        finally:
            self.release(endpoint, device)

    def _key(self, endpoint: WorkerOptions | None, device: int) -> tuple[str, int]:
        if endpoint is None:
            return ("", device if self._thread_per_card else 0)
        return (repr(endpoint), device)
