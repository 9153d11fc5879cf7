"""Requests and replies over a connection, with shared memory."""

from __future__ import annotations

import time
from collections.abc import Sequence

from .arrays import MAX_PAYLOAD, arrays_in, bytes_of, layout_of
from .errors import ProtocolError
from .log import log_line
from .request import Request
from .shared_memory import map_slot
from .values import Array, Fields, has_form, show_value
from .wire import Connection, close_all

MAX_SLOTS = 64


class SocketChannel:
    """Requests from a connection, and replies to it.

    Args:
        connection: a connection after its greeting.
        idle_seconds: end after this time without a request; 0 for never.
    """

    def __init__(self, connection: Connection, idle_seconds: float = 0) -> None:
        self._connection = connection
        self._idle_seconds = idle_seconds
        self._slots: dict[int, Array] = {}

    def receive(self, wait: bool) -> Request | None:
        """Return the next request; None if there is none yet and ``wait`` is false."""
        while wait or self._connection.readable(0):
            if wait and self._idle_seconds and not self._connection.readable(self._idle_seconds):
                log_line(f"ended a connection on which nothing was asked for {self._idle_seconds:g} s")
                raise EOFError("nothing was asked for a while")
            header, payload, descriptors = self._connection.receive(self._deadline())
            if not self._is_about_slots(header, descriptors):
                self._check_reply(header)
                return Request(header, arrays_in(header, payload, self._slots))
        return None

    def send(self, request: Request, fields: Fields, arrays: Sequence[Array]) -> None:
        """Send a reply; its arrays are put into the slot that the request offers if they fit."""
        header = {**fields, "id": request.fields.get("id")}
        place = request.fields.get("reply") or {}
        slot = self._slots.get(place.get("slot", -1))
        if slot is not None and arrays:
            listed, end = layout_of(arrays, start=place["offset"])
            if end <= slot.nbytes:
                for entry, values in zip(listed, arrays):
                    into = slot[entry["offset"] : entry["offset"] + values.nbytes]
                    into[:] = bytes_of(values)
                    entry["slot"] = place["slot"]
                self._connection.send({**header, "arrays": listed}, deadline=self._deadline())
                return
        self._connection.send(header, arrays, deadline=self._deadline())

    def _deadline(self) -> float | None:
        """Return the deadline of a frame; a client that stops within a frame, or does not read its reply, is idle too."""
        return time.monotonic() + self._idle_seconds if self._idle_seconds else None

    @staticmethod
    def _check_reply(header: Fields) -> None:
        place = header.get("reply") or {"slot": 0, "offset": 0}
        fits = isinstance(place, dict) and all(has_form(place.get(key), int) for key in ("slot", "offset"))
        if not fits or not 0 <= place["offset"] <= MAX_PAYLOAD:
            raise ProtocolError(f"a bad place for results: {show_value(place)}")
        if not has_form(header.get("id"), (int, None)):
            raise ProtocolError(f"a bad number of a request: {show_value(header.get('id'))}")

    def _is_about_slots(self, header: Fields, descriptors: list[int]) -> bool:
        """Handle requests without a reply: ``share`` maps memory, ``unshare`` releases it; return whether it was one."""
        try:
            if header.get("op") not in ("share", "unshare"):
                if descriptors:
                    raise ProtocolError("descriptors came with a request that takes none")
                return False
            number, size = header.get("slot"), header.get("size", 0)
            if not isinstance(number, int) or not has_form(size, int):
                raise ProtocolError(f"bad shared memory: {show_value(number)} of {show_value(size)} bytes")
            if header["op"] == "unshare":
                self._slots.pop(number, None)
            elif len(descriptors) != 1 or not 0 < size <= MAX_PAYLOAD or len(self._slots) >= MAX_SLOTS:
                raise ProtocolError(f"bad shared memory: {len(descriptors)} descriptors, {size} bytes")
            else:
                self._slots[number] = map_slot(descriptors[0], size)
        except (OSError, ValueError) as error:
            # The client checks the slot, detects this, and continues without shared memory.
            log_line(f"cannot map shared memory: {error}")
        finally:
            close_all(descriptors)
        return True
