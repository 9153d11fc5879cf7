"""The connection to one worker process: starting or connecting, sending, receiving, ending."""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.data.feeds import Array
from clipmlu.errors import BackendUnavailableError
from clipmlu.magicmind.client.peer import Fields
from clipmlu.magicmind.client.program import open_program, worker_digest
from clipmlu.magicmind.driver.address import parse_address
from clipmlu.magicmind.driver.errors import DeadlineError, DriverError, GreetingError, ProtocolError
from clipmlu.magicmind.driver.files import digest_of
from clipmlu.magicmind.driver.greeting import send_greeting
from clipmlu.magicmind.driver.log import LOG_TAIL, LogTail
from clipmlu.magicmind.driver.processes import describe_exit, start_child
from clipmlu.magicmind.driver.secret import read_secret
from clipmlu.magicmind.driver.values import printable
from clipmlu.magicmind.driver.wire import Connection

Frame = tuple[Fields, Array]
GRACE_SECONDS = 5.0
_LOG_WIDTH = 400


class LostError(Exception):
    """The worker died, hangs or sends invalid data; a new worker may succeed."""


class Event(NamedTuple):
    """Event of a link's reader thread: a frame, or the end of the connection.

    Attributes:
        link: number of the link.
        frame: header and payload; None at the end.
        reason: why the connection ended.
    """

    link: int
    frame: Frame | None
    reason: str


class Ending(NamedTuple):
    """The end of a worker: exit of the process, and the last part of its log."""

    exit: str
    log: str


class Link:
    """A connection after the greeting, with a thread that reads it.

    Args:
        options: options of the worker.
        number: distinguishes the links of a client.
        events: queue for frames and the end of the connection.
        replaces: the worker's name of the previous link, which the worker then ends.

    Attributes:
        number: as given.
        name: the worker's name of this link.
        previous: end of the process of the previous link, if the worker knows it.

    Raises:
        LostError: there is no answer, or an invalid one; a retry may help.
        BackendUnavailableError: a retry will not help.
    """

    def __init__(
        self, options: WorkerOptions, number: int, events: queue.SimpleQueue[Any], replaces: str | None
    ) -> None:
        self.number = number
        self._events = events
        self._process: subprocess.Popen[bytes] | None = None
        self._log: LogTail | None = None
        self._connection = self._start(options) if options.address is None else _connect(options)
        try:
            answer = self._greet(options, replaces)
        except BaseException:
            self._connection.close()
            raise
        name = answer.get("worker")
        self.name: str | None = name if isinstance(name, str) and len(name) <= MAX_NAME else None
        self.previous = _ending_from(answer.get("previous"))
        self._frame_seconds = options.run_seconds
        self._awaited: collections.deque[int] = collections.deque()
        self._reader = threading.Thread(target=self._read, name="clipmlu-worker-reader", daemon=True)
        self._reader.start()

    @property
    def passes_descriptors(self) -> bool:
        """Whether memory can be shared with the worker."""
        return self._connection.passes_descriptors

    def request(self, fields: Fields, arrays: list[Array], deadline: float, most_bytes: int) -> None:
        """Send one request that has an answer.

        Args:
            fields: the header.
            arrays: the payload.
            deadline: time limit for sending, in seconds of ``time.monotonic``.
            most_bytes: largest payload of the answer; a larger one ends the connection before memory is allocated.

        Raises:
            LostError: the worker ended, or does not receive the request in time.
        """
        self._awaited.append(most_bytes)
        self.send(fields, arrays, deadline)

    def send(self, fields: Fields, arrays: Sequence[Array], deadline: float, descriptors: tuple[int, ...] = ()) -> None:
        """Send one request that has no answer; see ``request``."""
        try:
            self._connection.send(fields, arrays, descriptors, deadline)
        except (EOFError, DeadlineError) as error:
            raise LostError(str(error)) from error

    def abort(self) -> None:
        """End the connection, even while another thread is sending."""
        self._connection.abort()

    def stop(self, patience: float) -> Ending:
        """End the connection, and the process if it was started here.

        Args:
            patience: seconds for the worker to close its sessions and end.
        """
        self._connection.abort()
        self._reader.join(GRACE_SECONDS)
        self._connection.close()
        return self._end_process(patience)

    def forget(self) -> None:
        """Close this process's copy of the connection, after a fork; the parent process keeps using it."""
        self._connection.close()

    def ended_cleanly(self) -> bool:
        """Return whether the process ended by itself and without an error, as after its idle time."""
        if self._process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(GRACE_SECONDS) == 0
        return False

    def _start(self, options: WorkerOptions) -> Connection:
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ["--serve", f"fd:{theirs.fileno()}", "--idle-seconds", str(options.idle_seconds)]
            environment = dict(os.environ if options.environment is None else options.environment)
            environment.setdefault("PYTHONUNBUFFERED", "1")
            try:
                with open_program(options.driver) as (program, descriptors):
                    command = [str(options.python), program, *arguments]
                    inherited = [theirs.fileno(), *descriptors]
                    self._process, self._log = start_child(command, inherited, environment, echo=False)
            except OSError as error:
                ours.close()
                raise BackendUnavailableError(
                    f"Cannot start the MagicMind worker with '{options.python}': {error.strerror}. "
                    "Give the interpreter of the vendor's environment."
                ) from error
        return Connection(ours, takes_descriptors=False)

    def _greet(self, options: WorkerOptions, replaces: str | None) -> Fields:
        try:
            secret = None if options.address is None else read_secret(options.secret_file)
            return send_greeting(
                self._connection,
                secret,
                worker_digest() if options.driver is None else digest_of(str(options.driver)),
                replaces=replaces,
                needs_secret=(options.address or "").startswith("tcp:"),
                seconds=options.start_seconds if options.address is None else options.greeting_seconds,
            )
        except GreetingError as error:
            self._end_process(0)
            raise BackendUnavailableError(f"MagicMind worker {options}: {error}.") from error
        except (ProtocolError, DeadlineError, EOFError) as error:
            if options.address is not None and replaces is None and not isinstance(error, EOFError):
                raise BackendUnavailableError(
                    f"MagicMind worker {options}: the program that answers is not a clipmlu worker: {error}."
                ) from error
            ending = self._end_process(GRACE_SECONDS if isinstance(error, EOFError) else 0)
            log = f"; it said: {ending.log}" if ending.log else ""
            raise LostError(f"it does not greet: {error} ({ending.exit}{log})") from error

    def _read(self) -> None:
        """Receive one answer for each request, of at most its size limit."""
        try:
            while self._connection.readable(None):
                most = self._awaited.popleft() if self._awaited else None
                header, payload, _descriptors = self._connection.receive(
                    time.monotonic() + self._frame_seconds, max_payload=most or 0
                )
                if "error" in header and header.get("id") is None:
                    error = DriverError.from_json(header["error"])
                    raise EOFError(f"it ended the connection: {error.status}")
                if most is None:
                    raise ProtocolError("an answer without a request")
                self._events.put(Event(self.number, (header, payload), ""))
        except ProtocolError as error:
            self._events.put(Event(self.number, None, f"it sent invalid data: {error}"))
        except DeadlineError:
            reason = f"it stopped for {self._frame_seconds:g} s in the middle of an answer"
            self._events.put(Event(self.number, None, reason))
        except (EOFError, OSError, ValueError) as error:
            self._events.put(Event(self.number, None, str(error)))

    def _end_process(self, patience: float) -> Ending:
        if self._process is None or self._log is None:
            return Ending("the connection ended", "")
        try:
            # Wait a moment, so that a crashed worker is reported with its own exit code.
            self._process.wait(patience or 0.2)
            text = describe_exit(self._process.returncode)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            text = "killed by the client"
        return Ending(text, self._log.text())


def _connect(options: WorkerOptions) -> Connection:
    assert options.address is not None, "the caller looked"
    try:
        kind, where = parse_address(options.address)
        if kind == "fd":
            raise GreetingError(f"'{options.address}' is no address; expected unix:PATH or tcp:HOST:PORT")
    except GreetingError as error:
        raise BackendUnavailableError(f"MagicMind worker: {error}.") from error
    deadline = time.monotonic() + options.start_seconds
    try:
        if kind == "tcp":
            stream = socket.create_connection(where, timeout=max(0.1, deadline - time.monotonic()))
        else:
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stream.settimeout(max(0.1, deadline - time.monotonic()))
            try:
                stream.connect(where)
            except BaseException:
                stream.close()
                raise
    except (OSError, UnicodeError) as error:
        raise LostError(f"cannot connect: {getattr(error, 'strerror', None) or error}") from error
    stream.settimeout(None)
    return Connection(stream, takes_descriptors=False)


def _ending_from(value: Any) -> Ending | None:
    """Return the end of the previous worker, as reported by its successor, or None."""
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("exit", "log")):
        return None
    lines = [printable(line, _LOG_WIDTH) for line in value["log"][-LOG_TAIL:].splitlines()]
    return Ending(printable(value["exit"], _LOG_WIDTH), "\n".join(lines))


MAX_NAME = 64  # characters of what a worker calls a connection
