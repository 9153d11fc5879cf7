"""Listens on an address and starts a process for each client."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

from . import FILE_NAME
from .address import parse_address, remove_stale
from .errors import DeadlineError, GreetingError, ProtocolError
from .greeting import ADMISSION_SECONDS, accept_greeting
from .log import log_line
from .processes import describe_exit, start_child
from .scratch import Scratch
from .secret import SECRET_VARIABLE
from .unauthenticated import MAX_UNAUTHENTICATED, UnauthenticatedConnections
from .values import Fields
from .wire import Connection


class Server:
    """Listens and starts a process for each connection, so that a crash in the SDK ends only one connection.

    Args:
        address: ``unix:PATH`` or ``tcp:HOST:PORT``.
        program: content of the worker's file; the processes run a private copy of it.
        secret: the secret that clients must prove; required for TCP.
        socket_mode: permissions of a Unix socket.
        max_clients: largest number of clients; clients before the proof do not count.
        idle_seconds: end a connection after this time without a request; 0 for never.
        roots: folders whose files clients can read.
        hidden: files that they cannot read.
    """

    def __init__(
        self,
        address: str,
        program: bytes,
        secret: bytes | None,
        *,
        socket_mode: int,
        max_clients: int,
        idle_seconds: float,
        roots: Sequence[str] = (),
        hidden: Sequence[str] = (),
    ) -> None:
        self._kind, self._where = parse_address(address, least_port=0)
        if self._kind == "tcp" and secret is None:
            raise GreetingError(f"TCP needs a shared secret: give --secret-file or set {SECRET_VARIABLE}")
        self._program = program
        self._digest = hashlib.sha256(program).hexdigest()
        self._secret = secret
        self._mode = socket_mode
        self._idle_seconds = idle_seconds
        self._roots = list(roots)
        self._hidden = list(hidden)
        self._unauthenticated = UnauthenticatedConnections()
        self._max_clients = max_clients
        self._free_clients = threading.BoundedSemaphore(max_clients)
        self._lock = threading.Lock()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._endings: dict[str, Fields] = {}
        self._scratch: Scratch | None = None

    def run(self) -> None:
        """Serve until SIGTERM or Ctrl-C."""
        awake, wake = os.pipe()
        for number in (signal.SIGTERM, signal.SIGINT):  # an exception could be lost in a destructor
            signal.signal(number, lambda *_: os.write(wake, b"."))
        listener = self._listen()
        poller = select.poll()
        poller.register(listener, select.POLLIN)
        poller.register(awake, select.POLLIN)
        try:
            self._scratch = Scratch()
            with open(os.path.join(self._scratch.path, FILE_NAME), "wb") as copy:
                copy.write(self._program)
            log_line(f"serving on {listener.getsockname()}; files in: {', '.join(self._roots) or 'no folder'}")
            while all(ready != awake for ready, _ in poller.poll()):
                self._accept(listener)
        finally:
            listener.close()
            if self._kind == "unix":
                with contextlib.suppress(OSError):
                    os.unlink(self._where)
            self._end_children()
            if self._scratch is not None:
                self._scratch.remove()

    def _accept(self, listener: socket.socket) -> None:
        try:
            stream, address = listener.accept()
        except OSError as error:  # the client has already closed, or no descriptors are left
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._unauthenticated.close_one()
                time.sleep(0.02)
            return
        connection = Connection(stream, takes_descriptors=False)
        host = str(address[0]) if self._kind == "tcp" else ""
        self._unauthenticated.add(connection, host)
        try:
            threading.Thread(target=self._serve_client, args=(connection, host), daemon=True).start()
        except RuntimeError as error:  # no further thread can be started
            log_line(f"refused a client: {error}")
            self._unauthenticated.remove(connection)
            connection.close()

    def _listen(self) -> socket.socket:
        try:
            listener = self._bind()
            listener.listen(MAX_UNAUTHENTICATED)
        except OSError as error:
            where = self._where if self._kind == "unix" else f"{self._where[0]}:{self._where[1]}"
            raise GreetingError(
                f"cannot listen on '{where}': {error.strerror or error}; give an address that this user may use and that is free"
            ) from error
        listener.setblocking(False)  # a waiting connection may be closed before accept
        return listener

    def _bind(self) -> socket.socket:
        if self._kind == "tcp":
            host, port = self._where
            try:
                family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
            except (OSError, UnicodeError) as error:
                raise GreetingError(
                    f"there is no host '{host}': {getattr(error, 'strerror', None) or error}"
                ) from error
            listener = socket.socket(family, socket.SOCK_STREAM)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
        else:
            remove_stale(self._where)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            before = os.umask(0o777 & ~self._mode)
            try:
                listener.bind(self._where)
            finally:
                os.umask(before)
        return listener

    def _serve_client(self, connection: Connection, host: str) -> None:
        worker = os.urandom(16).hex()
        admitted: list[bool] = []

        def admit(hello: Fields) -> Fields:
            if not self._unauthenticated.remove(connection):
                raise GreetingError("too many connections at once")
            facts = self._describe_connection(worker, hello)
            if not self._free_clients.acquire(timeout=ADMISSION_SECONDS):
                raise GreetingError(f"all {self._max_clients} places are taken (--max-clients)")
            admitted.append(True)
            return facts

        try:
            accept_greeting(connection, self._secret, self._digest, admit)
            self._run_child(connection, worker)
        except (GreetingError, ProtocolError, DeadlineError, EOFError, OSError) as error:
            log_line(f"refused a client{' of ' if host else ''}{host}: {error}")
        finally:
            self._unauthenticated.remove(connection)
            connection.abort()
            connection.close()
            if admitted:
                self._free_clients.release()

    def _describe_connection(self, worker: str, hello: Fields) -> Fields:
        """Name the connection; a client that reconnects gets the end and the log of its last process."""
        former = str(hello.get("replaces"))
        with self._lock:
            child = self._children.get(former)
        if child is not None:
            child.kill()
            child.wait()
            time.sleep(0.1)  # for the last lines of its log
        with self._lock:
            return {"worker": worker, "previous": self._endings.pop(former, None)}

    def _run_child(self, connection: Connection, worker: str) -> None:
        assert self._scratch is not None, "it is made before the first client is accepted"
        scratch = os.path.join(self._scratch.path, worker)
        os.mkdir(scratch, 0o700)
        environment = {name: value for name, value in os.environ.items() if name != SECRET_VARIABLE}
        copy = os.path.join(self._scratch.path, FILE_NAME)
        command = [sys.executable, copy, "--serve", f"fd:{connection.fileno()}", "--greeted"]
        command += ["--scratch", scratch, "--idle-seconds", str(self._idle_seconds)]
        command += [f"--root={root}" for root in self._roots] + [f"--hidden={path}" for path in self._hidden]
        try:
            child, tail = start_child(command, [connection.fileno()], environment, echo=True)
            with self._lock:
                self._children[worker] = child
            self._watch(connection, child)
            with self._lock:
                del self._children[worker]
                self._endings[worker] = {"exit": describe_exit(child.returncode), "log": tail.text()}
                while len(self._endings) > 16:
                    del self._endings[next(iter(self._endings))]
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    @staticmethod
    def _watch(connection: Connection, child: subprocess.Popen[bytes]) -> None:
        """Wait for the end of the child; kill it if its client is gone and the SDK hangs."""
        while child.poll() is None:
            if connection.peer_gone(0.2):
                try:
                    child.wait(2)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()

    def _end_children(self) -> None:
        with self._lock:
            children = list(self._children.values())
        for child in children:
            child.kill()
        for child in children:
            child.wait()
        time.sleep(0.3 if children else 0)  # for the threads that remove the folders
