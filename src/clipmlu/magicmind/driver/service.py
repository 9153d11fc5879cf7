"""Handles requests: files, builds, sessions and runs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from .arrays import bytes_of
from .building import build
from .errors import DriverError
from .files import CHUNK, FileAccess, as_path, digest_of_stream, unreadable
from .onnx_file import check_holds_its_weights
from .request import Reply, Request
from .running import Runner
from .scratch import Scratch
from .sdk import Cards, describe_host, is_emulated, load_sdk
from .spec import SOURCE_FORM, check_form, check_spec
from .values import SIZES, Fields, has_form, show_value

MAX_DEPTH = 64
_UPLOAD = "upload:"


class Service:
    """Handles requests in order: files, builds, sessions and runs. Makes all SDK calls.

    Args:
        load: returns ``magicmind.python.runtime``; called on first use.
        scratch: directory for uploaded files; None creates a temporary one on first use.
        file_access: checks which other files requests can access.
    """

    def __init__(
        self, load: Callable[[], Any] = load_sdk, scratch: str | None = None, file_access: FileAccess | None = None
    ) -> None:
        self._load = load
        self._loaded: tuple[Any, Cards] | None = None
        self._scratch = scratch
        self._own_scratch: Scratch | None = None
        self._file_access = file_access or FileAccess()
        self._runners: dict[int, Runner] = {}
        self._next_session = 1

    def answer(self, request: Request) -> Reply:
        """Handle any request except a run."""
        operation = request.fields.get("op")
        method = getattr(self, f"_on_{operation}", None) if isinstance(operation, str) else None
        if method is None:
            raise DriverError("request", f"there is no operation {show_value(operation)}", kind="spec")
        reply: Reply = method(request)
        return reply

    def runner(self, request: Request) -> Runner:
        """Return the session of a request."""
        session = request.fields.get("session")
        if not has_form(session, int) or session not in self._runners:
            raise DriverError("request", f"there is no session {show_value(session)}", kind="spec")
        return self._runners[session]

    def close(self) -> None:
        """Close all sessions, then release the cards."""
        while self._runners:
            self._runners.popitem()[1].close()
        if self._loaded is not None:
            self._loaded[1].forget()
        if self._own_scratch is not None:
            self._own_scratch.remove()

    def _sdk(self) -> tuple[Any, Cards]:
        if self._loaded is None:
            sdk = self._load()
            self._loaded = (sdk, Cards(sdk))
        return self._loaded

    def _on_ping(self, _request: Request) -> Reply:
        return {}, []

    def _on_check_slot(self, request: Request) -> Reply:
        """Return the first bytes of an array in shared memory, so that the client can compare them."""
        return {"token": bytes_of(request.array(0))[:64].tobytes().hex()}, []

    def _on_info(self, _request: Request) -> Reply:
        return describe_host(self._sdk), []

    def _on_build(self, request: Request) -> Reply:
        spec = dict(request.field("spec", dict))
        check_spec(spec)
        spec["onnx"] = self._readable(spec["onnx"])
        spec["output"] = self._writable(spec["output"])
        if self._file_access.limited:
            check_holds_its_weights(spec["onnx"])
            self._check_folders_in(spec.get("extra"))
        if spec.get("toolchain"):
            spec["toolchain"] = self._file_access.folder(spec["toolchain"])
        if spec.get("calibration"):
            spec["calibration"] = dict(spec["calibration"])
            spec["calibration"]["data"] = [self._source(item, request) for item in spec["calibration"]["data"]]
        sdk, cards = self._sdk()
        return build(sdk, cards, spec), []

    def _on_open(self, request: Request) -> Reply:
        model = self._readable(request.field("model", str))
        ranges = request.field("ranges", ([([SIZES], None)], None))
        if any(each is not None and len(each) != 2 for each in ranges or ()):
            raise DriverError("request", f"'ranges' is {show_value(ranges)}; expected pairs of shapes", kind="spec")
        device = request.field("device", int, 0)
        depth = request.number("depth", 2, 1, MAX_DEPTH)
        check_finite = request.field("check_finite", bool, True)
        sdk, cards = self._sdk()
        runner = Runner(sdk, cards, model, device=device, depth=depth, ranges=ranges, check_finite=check_finite)
        session = self._next_session
        self._next_session += 1
        self._runners[session] = runner
        facts: Fields = {
            "session": session,
            "warnings": runner.warnings,
            "depth": runner.free_slots,
            "emulated": is_emulated(sdk),
        }
        return {**facts, **runner.ports}, []

    def _on_close(self, request: Request) -> Reply:
        runner = self.runner(request)
        del self._runners[request.fields["session"]]
        runner.close()
        return {}, []

    def _on_have(self, request: Request) -> Reply:
        """Return whether a readable file with that path, size and digest exists on this machine."""
        size, digest = request.field("size", int), request.field("sha256", str)
        try:
            with self._file_access.open(request.fields.get("path")) as stream:
                same = os.fstat(stream.fileno()).st_size == size and digest_of_stream(stream) == digest
        except DriverError:
            same = False
        return {"have": same}, []

    def _on_put(self, request: Request) -> Reply:
        """Write one part of an uploaded file."""
        path = self._uploaded(request.field("name", str))
        piece = request.array(0)
        offset = request.number("offset", None, 0, sys.maxsize)
        try:
            with open(path, "r+b" if offset else "wb") as stream:
                if stream.seek(0, os.SEEK_END) != offset:
                    raise DriverError("put", f"'offset' is {offset}; expected the end of the file", kind="spec")
                stream.write(piece.tobytes())
        except OSError as error:
            raise DriverError("put", f"cannot write the file: {error.strerror}", kind="spec") from error
        return {}, []

    def _on_get(self, request: Request) -> Reply:
        """Read one part of a file."""
        offset = request.number("offset", None, 0, sys.maxsize)
        path = request.field("path", str)
        with open(self._upload(path), "rb") if path.startswith(_UPLOAD) else self._file_access.open(path) as stream:
            try:
                stream.seek(offset)
                return {}, [np.frombuffer(stream.read(CHUNK), np.uint8)]
            except OSError as error:  # an invalid offset, or a failed disk
                raise unreadable(path, f"at {offset}: {error.strerror}") from error

    def _source(self, source: Fields, request: Request) -> Fields:
        """Return a data source with array indices and uploads replaced by arrays and paths."""
        check_form("calibration data", source, SOURCE_FORM, ())
        source = dict(source)
        if "arrays" in source:
            source["arrays"] = [
                item if isinstance(item, np.ndarray) else request.array(item) for item in source["arrays"]
            ]
        if "files" in source:
            source["files"] = [self._readable(item) for item in source["files"]]
        if "file" in source:
            source["file"] = self._readable(source["file"])
        return source

    def _check_folders_in(self, value: Any, key: str = "") -> None:
        """Check that paths in the SDK's settings are folders that a remote client may use."""
        if isinstance(value, dict):
            for name, item in value.items():
                self._check_folders_in(item, name)
        elif isinstance(value, list):
            for item in value:
                self._check_folders_in(item, key)
        elif isinstance(value, str) and ("/" in value or re.search("path|dir|file|folder", key)):
            self._file_access.folder(value)

    def _readable(self, given: str) -> str:
        """Return the path of a file to read: an uploaded one, or one that the client can access."""
        if given.startswith(_UPLOAD):
            return self._upload(given)
        return self._file_access.readable(given) if self._file_access.limited else as_path(given)

    def _writable(self, given: str) -> str:
        """Return the path of a file to write; a remote client writes into the upload folder and downloads the file."""
        if given.startswith(_UPLOAD):
            return self._uploaded(given[len(_UPLOAD) :])
        if self._file_access.limited:
            raise DriverError("build", f"'{given}' is no place to write to; expected '{_UPLOAD}NAME'", kind="spec")
        return as_path(given)

    def _upload(self, given: str) -> str:
        path = self._uploaded(given[len(_UPLOAD) :])
        if not os.path.isfile(path):
            raise DriverError("request", f"'{given}' was not uploaded", kind="spec")
        return path

    def _uploaded(self, name: str) -> str:
        if not re.match(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\Z", name):
            raise DriverError("request", f"'{name}' is no name for an uploaded file", kind="spec")
        if self._scratch is None:
            self._own_scratch = Scratch()
            self._scratch = self._own_scratch.path
        return os.path.join(self._scratch, name)
