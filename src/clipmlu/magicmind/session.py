"""Sessions on a card."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import numpy as np

from clipmlu.backends.base import Feeds, Session
from clipmlu.bundle.manifest import Tower
from clipmlu.data.feeds import Array
from clipmlu.errors import BackendUnavailableError, BundleCorruptError, SessionError
from clipmlu.magicmind.build import check_sdk
from clipmlu.magicmind.client.peer import Opened, OpenRequest, Peer, session_error
from clipmlu.magicmind.driver.errors import DriverError


class MagicMindSession(Session):
    """Runs one graph through a peer; batches finish in the order of submission.

    Args:
        tower: the graph's inputs and outputs, in the model's order.
        label: name of the session in messages.
        peer: connection to the driver.
        request: the session to open.
        release: called when the session is closed.

    Attributes:
        warnings: the driver's warnings on opening.
    """

    def __init__(
        self, tower: Tower, label: str, peer: Peer, request: OpenRequest, release: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(tower, label)
        self._peer = peer
        try:
            self._opened = peer.open_session(request)
            check_sdk(self._opened.facts.emulated, request.emulated)
            self._check_ports(tower)
        except DriverError as error:
            release()
            raise session_error(error, label) from error
        except BaseException:
            release()
            raise
        self.clock = self._opened.clock
        self.warnings: list[str] = [str(each) for each in self._opened.facts.warnings]
        self._let_go = weakref.finalize(self, _let_go_later, peer, self._opened, release)
        self._let_go.atexit = False  # the worker ends with this process

    @property
    def restarts(self) -> int:
        """Lost and replaced workers of the card."""
        return int(getattr(self._peer, "restarts", 0))

    def on_fork(self) -> None:
        """Detach the session in a forked process; the parent process keeps the card."""
        self._let_go.detach()

    def _start(self, feeds: Feeds) -> PendingResult:
        future = self._peer.submit(self._opened, [feeds[name] for name in self.inputs])
        return PendingResult(future, self)

    def _release(self) -> None:
        """Release the contexts on the card; the worker ends with its last session."""
        if (parts := self._let_go.detach()) is not None:
            _let_go(*parts[2])

    def name_results(self, arrays: list[Array]) -> dict[str, Array]:
        """Return outputs by name, in the dtype of the bundle."""
        specs = self.outputs.values()
        return {spec.name: array.astype(spec.dtype, copy=False) for spec, array in zip(specs, arrays, strict=True)}

    def explain(self, error: Exception) -> Exception:
        """Return the error of a batch with the name of the graph added."""
        if isinstance(error, DriverError):
            return session_error(error, self._label)
        return type(error)(f"{self._label}: {error}")

    def _check_ports(self, tower: Tower) -> None:
        facts = self._opened.facts
        found = (len(facts.inputs), len(facts.outputs))
        if found != (len(tower.inputs), len(tower.outputs)):
            raise BundleCorruptError(
                f"{self._label}: the model file has {found[0]} inputs and {found[1]} outputs; "
                f"the manifest says {len(tower.inputs)} and {len(tower.outputs)}. Compile the bundle again."
            )
        ports = zip((*facts.inputs, *facts.outputs), (*tower.inputs, *tower.outputs), strict=True)
        for port, spec in ports:
            if np.dtype(port.dtype).kind != np.dtype(spec.dtype).kind:  # the model may have narrower types
                raise BundleCorruptError(
                    f"{self._label}: the model file has '{spec.name}' as {port.dtype}; the manifest says {spec.dtype}. "
                    "Compile the bundle again."
                )


def _let_go(peer: Peer, opened: Opened, release: Callable[[], None]) -> None:
    with contextlib.suppress(SessionError):  # the peer is closed already, and so are all sessions
        peer.close_session(opened)
    release()


def _let_go_later(peer: Peer, opened: Opened, release: Callable[[], None]) -> None:
    """Release a session that was dropped without closing, on a new thread, since the collecting thread may hold a lock."""
    threading.Thread(target=_let_go, args=(peer, opened, release), name="clipmlu-release", daemon=True).start()


class PendingResult:
    """A batch in flight."""

    def __init__(self, future: Future[list[Array]], session: MagicMindSession) -> None:
        self._future = future
        self._session = session
        self._named: dict[str, Array] | None = None

    def result(self) -> dict[str, Array]:
        """Wait for the batch and return its outputs; the caller owns the arrays.

        Raises:
            SessionError: the batch failed, or the worker was lost too often.
        """
        if self._named is None:
            try:
                arrays = self._future.result()
            except (DriverError, SessionError, BackendUnavailableError) as error:
                raise self._session.explain(error) from error
            self._named = self._session.name_results(arrays)
        return self._named

    def add_done_callback(self, call: Callable[[Any], object], /) -> None:
        """Call a function when the batch has ended; see ``PendingBatch``."""
        self._future.add_done_callback(call)
