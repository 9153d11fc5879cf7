"""Receiving one file of a hub: continued after a cut connection, never larger than announced, and checked by its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import re
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import BinaryIO
from urllib.error import URLError

from clipmlu.export.http_client import Answer, AnswerError, HttpClient, StatusError
from clipmlu.export.retrying import Interruption, RetryPolicy, interruption_of_status, repeat
from clipmlu.steps import BYTES, StartStep, Step

_READ_BYTES = 1 << 20
_PROGRESS_BYTES = 1 << 20
"""Least number of received bytes after which the attempts are counted anew."""
_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")
_LEAST_RATE = 10_000  # bytes per second, on average over an attempt
_GRACE_S = 60.0
_DIGEST_CHARACTERS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository as the hub lists it.

    Attributes:
        path: relative to the repository, with ``/``.
        size: in bytes.
        sha256: digest in lower-case hex, or None if the hub gives none.
    """

    path: str
    size: int
    sha256: str | None


class DigestError(Exception):
    """A received file has another digest than announced; it was deleted.

    Attributes:
        found: its digest.
    """

    def __init__(self, found: str) -> None:
        self.found = found
        super().__init__(found)


class CutError(Exception):
    """The connection ended before the whole file was received; the message is the reason, with the server as subject."""

    def __init__(self, reason: str, received: int) -> None:
        self.interruption = Interruption(reason=reason, has_progress=received >= _PROGRESS_BYTES)
        super().__init__(reason)


def receive_file(
    client: HttpClient,
    url: str,
    file: RemoteFile,
    target: Path,
    *,
    server: str,
    label: str,
    policy: RetryPolicy,
    on_step: StartStep,
) -> str:
    """Download a file to a path, and return its digest.

    What was received before a failure stays beside the path, and the next call continues with it.

    Args:
        client: sends the requests.
        url: of the file.
        file: what the hub announces.
        target: path of the complete file; its folder exists.
        server: name of the server, for steps.
        label: what is downloaded, for the step.
        policy: further attempts.
        on_step: shows the download and its pauses.

    Raises:
        DigestError: the content is not the announced one.
        CutError: the connection was cut in all attempts.
        StatusError, AnswerError: the server does not send the file.
        OSError, http.client.HTTPException: the connection failed, or the file cannot be written.
    """
    part = target.with_name(f"{target.name}.{(file.sha256 or '')[:_DIGEST_CHARACTERS]}.part")
    if file.sha256 is None:  # an earlier part may be of another version
        part.unlink(missing_ok=True)
    with on_step(label, total=file.size, unit=BYTES) as step:
        receiver = _Receiver(part, file.size, step)
        repeat(
            lambda: receiver.receive(client, url),
            interruption_of,
            server=server,
            policy=policy,
            on_step=on_step,
        )
    found = receiver.digest.hexdigest()
    if file.sha256 not in (None, found):
        part.unlink()
        raise DigestError(found)
    os.replace(part, target)
    return found


def interruption_of(error: Exception) -> Interruption | None:
    """Return why a request may succeed later, or None."""
    if isinstance(error, CutError):
        return error.interruption
    if isinstance(error, StatusError):
        return interruption_of_status(error.status, error.headers.get("Retry-After"))
    if isinstance(error, URLError):  # the server cannot be reached: said at once
        return None
    reason = cut_reason(error)
    return None if reason is None else Interruption(reason=reason)


def cut_reason(error: BaseException | None) -> str | None:
    """Return the reason if a connection was cut or is too slow; the server is the subject."""
    while error is not None:
        if isinstance(error, TimeoutError):
            return "does not answer in time"
        if isinstance(
            error, ConnectionResetError | ConnectionAbortedError | BrokenPipeError | http.client.IncompleteRead
        ):
            return "cut the connection"
        error = error.__cause__ or error.__context__
    return None


class _Receiver:
    """A file that is received, possibly with several requests.

    Attributes:
        digest: SHA-256 of what was received.
    """

    def __init__(self, part: Path, size: int, step: Step) -> None:
        self._part = part
        self._size = size
        self._step = step
        self._count = 0
        self._received = False
        self.digest = hashlib.sha256()
        self._read_earlier_part()

    def _read_earlier_part(self) -> None:
        """Continue with what an earlier process received, unless that cannot be a part of the file."""
        with suppress(FileNotFoundError):
            if self._part.stat().st_size > self._size:
                self._part.unlink()
            with self._part.open("rb") as stream:
                while piece := stream.read(_READ_BYTES):
                    self._take(piece)

    def receive(self, client: HttpClient, url: str) -> None:
        """Receive the rest of the file.

        Raises:
            CutError: another request may receive the rest.
            StatusError, AnswerError, OSError, http.client.HTTPException: as ``receive_file``.
        """
        if self._count == self._size and self._part.exists():
            return
        before = self._count
        try:
            self._ask(client, url)
        except StatusError as error:
            if error.status != HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not before:
                raise
            self._part.unlink()
            self._begin_anew()
            raise CutError("has no such part", 0) from error
        except (OSError, http.client.HTTPException) as error:
            reason = cut_reason(error)
            if reason is None or (isinstance(error, URLError) and not self._received):
                raise
            raise CutError(reason, self._count - before) from error
        if self._count < self._size:
            raise CutError("cut the connection", self._count - before)

    def _ask(self, client: HttpClient, url: str) -> None:
        """Send one request and write what it brings."""
        first = self._count
        headers = {"Range": f"bytes={first}-"} if first else {}
        limit_s = _GRACE_S + (self._size - first) / _LEAST_RATE
        with client.get(url, headers, limit_s=limit_s) as answer, self._part.open("ab") as stream:
            if first and not _is_rest(answer, first):
                stream.truncate(0)
                self._begin_anew()
                if answer.status == HTTPStatus.PARTIAL_CONTENT:
                    raise CutError("sends another part than was asked for", 0)
            if answer.length is not None and self._count + answer.length != self._size:
                stream.truncate(0)
                raise AnswerError(
                    f"sends {self._count + answer.length:,} bytes instead of the announced {self._size:,}"
                )
            self._write(answer, stream)

    def _begin_anew(self) -> None:
        self._step.advance(-self._count)
        self._count = 0
        self.digest = hashlib.sha256()

    def _write(self, answer: Answer, stream: BinaryIO) -> None:
        for piece in answer.pieces():
            if self._count + len(piece) > self._size:
                stream.truncate(0)
                raise AnswerError(f"sends more than the announced {self._size:,} bytes")
            stream.write(piece)
            self._received = True
            self._take(piece)

    def _take(self, piece: bytes) -> None:
        self.digest.update(piece)
        self._count += len(piece)
        self._step.advance(len(piece))


def _is_rest(answer: Answer, first: int) -> bool:
    """Return whether an answer is a file from byte ``first``; a server that knows no ranges sends all of it instead."""
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", "").strip())
    return answer.status == HTTPStatus.PARTIAL_CONTENT and match is not None and int(match[1]) == first
