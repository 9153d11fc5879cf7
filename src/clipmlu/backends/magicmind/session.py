"""A session on a card."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future

from clipmlu.backends.base import Array, Feeds, Session
from clipmlu.backends.magicmind.building import check_sdk
from clipmlu.backends.magicmind.driver import DriverError
from clipmlu.backends.magicmind.peer import OpenRequest, Peer, session_error
from clipmlu.bundle import Tower
from clipmlu.errors import BackendUnavailableError, BundleCorruptError, SessionError


class MagicMindSession(Session):
    """Runs one graph through a peer; batches finish in the order of submission.

    Args:
        tower: the graph's inputs and outputs, in the order in which the model has them.
        label: what messages call it.
        peer: the driver.
        request: what to open.
        release: called when the session is closed.

    Attributes:
        warnings: what the driver noticed while opening.
    """

    def __init__(
        self, tower: Tower, label: str, peer: Peer, request: OpenRequest, release: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(tower, label)
        self._peer = peer
        self._release = release
        self._closed = False
        try:
            self._opened = peer.open_session(request)
            check_sdk(bool(self._opened.facts.get("emulated")), request.emulated)
            self._check_ports(tower)
        except DriverError as error:
            release()
            raise session_error(error, label) from error
        except BaseException:
            release()
            raise
        self.clock = self._opened.clock
        self.warnings: list[str] = list(self._opened.facts.get("warnings", ()))

    def submit(self, feeds: Feeds) -> PendingResult:
        """Start one batch; see ``Session.submit``. The arrays must not change until its result is there."""
        self.check_feeds(feeds)
        if self._closed:
            raise SessionError(f"{self._label}: the session is closed.")
        future = self._peer.submit(self._opened, [feeds[name] for name in self.inputs])
        return PendingResult(future, self)

    def close(self) -> None:
        """Release the contexts on the card; the worker ends with the last session on it."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(SessionError):  # the peer is closed already, and with it all sessions
            self._peer.close_session(self._opened)
        self._release()

    def name_results(self, arrays: list[Array]) -> dict[str, Array]:
        """Outputs by name, in the type that the bundle declares."""
        specs = self.outputs.values()
        return {spec.name: array.astype(spec.dtype, copy=False) for spec, array in zip(specs, arrays, strict=True)}

    def explain(self, error: Exception) -> Exception:
        """An error of a batch, with the name of the graph."""
        if isinstance(error, DriverError):
            return session_error(error, self._label)
        return type(error)(f"{self._label}: {error}")

    def _check_ports(self, tower: Tower) -> None:
        facts = self._opened.facts
        found = (len(facts["inputs"]), len(facts["outputs"]))
        if found != (len(tower.inputs), len(tower.outputs)):
            raise BundleCorruptError(
                f"{self._label}: the model file has {found[0]} inputs and {found[1]} outputs; "
                f"the manifest says {len(tower.inputs)} and {len(tower.outputs)}. Compile the bundle again."
            )


class PendingResult:
    """A batch in flight."""

    def __init__(self, future: Future[list[Array]], session: MagicMindSession) -> None:
        self._future = future
        self._session = session
        self._named: dict[str, Array] | None = None

    def result(self) -> dict[str, Array]:
        """Wait for the batch; the arrays belong to the caller.

        Raises:
            SessionError: it failed, or the worker was lost too often.
        """
        if self._named is None:
            try:
                arrays = self._future.result()
            except (DriverError, SessionError, BackendUnavailableError) as error:
                raise self._session.explain(error) from error
            self._named = self._session.name_results(arrays)
        return self._named
