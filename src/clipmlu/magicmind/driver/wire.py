"""Frames over a socket.

A frame has: b"CMW1", length of the header (4 bytes), length of the payload (8 bytes), both little-endian; the header: a
JSON object; the payload: the bytes of the arrays that the header lists, each at a multiple of 64. An array may also be
in shared memory, a "slot": memory without a name, whose descriptor the client passes over a Unix socket.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import select
import socket
import struct
import time
from collections.abc import Iterable, Sequence

import numpy as np

from .arrays import MAX_PAYLOAD, bytes_of, entries_in, layout_of
from .errors import DeadlineError, ProtocolError
from .values import Array, Fields, show_value

MAX_HEADER = 1 << 20
KEEPALIVE = (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6), ("TCP_USER_TIMEOUT", 90000))
"""TCP options: a connection fails if its host does not answer for 90 seconds; the last value is in milliseconds."""
_MAGIC = b"CMW1"
PRELUDE = struct.Struct("<4sIQ")
_PIECE = 64 << 20
_PEER_GONE = 0x2000  # POLLRDHUP of Linux; Python 3.7's select module has no name for it
_POLL_ERRORS = sum(getattr(select, name, 0) for name in ("POLLERR", "POLLHUP", "POLLNVAL"))  # not on Windows


class Connection:
    """Frames over a stream socket.

    Args:
        stream: a connected socket.
        takes_descriptors: accept descriptors with a frame; otherwise the system closes them.
    """

    def __init__(self, stream: socket.socket, *, takes_descriptors: bool = True) -> None:
        self._stream = stream
        self._passes_descriptors = stream.family == getattr(socket, "AF_UNIX", None)
        self._takes_descriptors = takes_descriptors and self._passes_descriptors
        if not self._passes_descriptors:
            _keep_alive(stream)

    @property
    def passes_descriptors(self) -> bool:
        """Whether memory can be shared by passing its descriptor."""
        return self._passes_descriptors

    def fileno(self) -> int:
        """The socket's descriptor."""
        return self._stream.fileno()

    def send(
        self,
        header: Fields,
        arrays: Sequence[Array] = (),
        descriptors: Sequence[int] = (),
        deadline: float | None = None,
    ) -> None:
        """Send one frame.

        Args:
            header: a JSON object; ``arrays`` are listed in it.
            arrays: arrays of the payload.
            descriptors: file descriptors to pass.
            deadline: on the clock ``time.monotonic``; None for no deadline.

        Raises:
            DeadlineError: the deadline passed.
            EOFError: the connection ended.
        """
        listed, length = layout_of(arrays)
        text = json.dumps({**header, "arrays": [*header.get("arrays", ()), *listed]}).encode()
        start = PRELUDE.pack(_MAGIC, len(text), length) + text
        try:
            if descriptors:
                start = start[self._send_with(start, descriptors, deadline) :]
            self._send_all(memoryview(start), deadline)
            position = 0
            for item, entry in zip(arrays, listed):
                self._send_all(memoryview(bytes(entry["offset"] - position)), deadline)
                self._send_all(bytes_of(item).data, deadline)
                position = entry["offset"] + item.nbytes
        except OSError as error:
            raise EOFError(f"the connection broke: {error}") from error

    def receive(
        self, deadline: float | None = None, max_header: int = MAX_HEADER, max_payload: int = MAX_PAYLOAD
    ) -> tuple[Fields, Array, list[int]]:
        """Receive one frame: header, payload (uint8) and passed descriptors.

        Raises:
            ProtocolError: the data are not a frame, or larger than allowed.
            DeadlineError, EOFError: as ``send``.
        """
        start, descriptors = self._receive_start(deadline)
        try:
            header_length, payload_length = _check_start(start, max_header, max_payload)
            header = _header_from(self._receive_exactly(header_length, deadline).tobytes())
            if payload_length:
                _check_payload(header, payload_length)
            payload = self._receive_payload(payload_length, deadline)
        except BaseException:
            close_all(descriptors)
            raise
        return header, payload, descriptors

    def readable(self, seconds: float | None) -> bool:
        """Return whether data arrive, or the connection ends, within that time; None waits without limit."""
        return bool(self._poll(select.POLLIN, seconds))

    def peer_gone(self, seconds: float) -> bool:
        """Return whether the other side ends within that time, even if data are still unread."""
        return any(event & (_PEER_GONE | _POLL_ERRORS) for _, event in self._poll(_PEER_GONE, seconds))

    def abort(self) -> None:
        """End the connection, also for a thread that is sending or receiving, and for a process that shares it."""
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close this end."""
        self._stream.close()

    def _poll(self, events: int, seconds: float | None) -> list[tuple[int, int]]:
        poller = select.poll()
        poller.register(self._stream.fileno(), events)
        return poller.poll(None if seconds is None else max(0, seconds) * 1000)

    def _await(self, events: int, deadline: float | None) -> None:
        if deadline is not None and not self._poll(events, deadline - time.monotonic()):
            raise DeadlineError("the other side took too long")

    def _send_with(self, start: bytes, descriptors: Sequence[int], deadline: float | None) -> int:
        """Send the beginning of a frame with descriptors; return the number of sent bytes."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        while True:
            self._await(select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                return self._stream.sendmsg([start], ancillary, 0 if deadline is None else socket.MSG_DONTWAIT)

    def _send_all(self, view: memoryview, deadline: float | None) -> None:
        while view.nbytes:
            if deadline is None:
                self._stream.sendall(view)
                return
            self._await(select.POLLOUT, deadline)
            with contextlib.suppress(BlockingIOError):
                view = view[self._stream.send(view, socket.MSG_DONTWAIT) :]

    def _receive_start(self, deadline: float | None) -> tuple[bytes, list[int]]:
        """Receive the fixed part of a frame, with the descriptors that came with it."""
        self._await(select.POLLIN, deadline)
        descriptors: list[int] = []
        try:
            if self._takes_descriptors:
                room = socket.CMSG_SPACE(4 * struct.calcsize("i"))
                flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
                start, ancillary, _flags, _address = self._stream.recvmsg(PRELUDE.size, room, flags)
                descriptors = _descriptors_in(ancillary)
            else:
                start = self._stream.recv(PRELUDE.size)
            if not start:
                raise EOFError("the other side closed the connection")
            rest = self._receive_exactly(PRELUDE.size - len(start), deadline)
        except OSError as error:
            close_all(descriptors)
            raise EOFError(f"the connection broke: {error}") from error
        except BaseException:
            close_all(descriptors)
            raise
        return start + rest.tobytes(), descriptors

    def _receive_payload(self, count: int, deadline: float | None) -> Array:
        """Receive bytes as ``_receive_exactly``; memory is allocated for received data, not for the announced size."""
        payload = self._receive_exactly(min(count, _PIECE), deadline)
        try:
            while payload.nbytes < count:
                more = self._receive_exactly(min(count - payload.nbytes, payload.nbytes), deadline)
                payload = np.concatenate([payload, more])
        except MemoryError as error:
            raise ProtocolError(f"there is no memory for a payload of {count} bytes") from error
        return payload

    def _receive_exactly(self, count: int, deadline: float | None) -> Array:
        buffer = np.empty(count, np.uint8)
        view = buffer.data
        while view.nbytes:
            self._await(select.POLLIN, deadline)
            try:
                received = self._stream.recv_into(view)
            except OSError as error:
                raise EOFError(f"the connection broke: {error}") from error
            if not received:
                raise EOFError("the other side closed the connection in the middle of a frame")
            view = view[received:]
        return buffer


def _keep_alive(stream: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the other side has already closed
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):
                stream.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _check_start(start: bytes, max_header: int, max_payload: int) -> tuple[int, int]:
    magic, header_length, payload_length = PRELUDE.unpack(start)
    if magic != _MAGIC:
        raise ProtocolError(f"no frame begins with {start[:8]!r}")
    if header_length > max_header or payload_length > max_payload:
        raise ProtocolError(
            f"a frame with {header_length} bytes of header and {payload_length} of payload; "
            f"allowed are {max_header} and {max_payload}"
        )
    return header_length, payload_length


def _header_from(text: bytes) -> Fields:
    try:
        header = json.loads(
            text.decode("utf-8"), parse_int=_whole_number, parse_float=_fraction, parse_constant=_no_number
        )
    except RecursionError:
        raise ProtocolError("a header that is nested too deeply") from None
    except ValueError as error:
        raise ProtocolError(f"a header that is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ProtocolError("a header that is no object")
    return header


def _whole_number(digits: str) -> int:
    if len(digits) > 40:  # Python takes very long to read long numbers
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _fraction(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{show_value(text)} is too large")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _check_payload(header: Fields, length: int) -> None:
    """Check, before memory is allocated, that the payload is exactly the arrays that the header lists."""
    entries = entries_in(header)
    end = max([entry.offset + entry.nbytes for entry in entries if entry.slot is None] or [0])
    if end != length:
        raise ProtocolError(f"a payload of {length} bytes for arrays that end at {end}")


def _descriptors_in(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def close_all(descriptors: Iterable[int]) -> None:
    """Close file descriptors."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
