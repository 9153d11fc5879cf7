"""A server on loopback that answers like ModelScope, as clients of the site saw it, and fails on demand.

Sources: the clients ``modelscope`` 1.40.2 and ``modelscope-hub`` 0.5.1 (PyPI), and the record of the site's answers in
``python/neutree/downloader/test_model_scope.py`` of github.com/neutree-ai/neutree: an unknown revision is no error but has
``Files: null``, an unknown repository is a 404 with the code 10010205001, large files are redirected to another host.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from image_server import Answer, ImageServer, content, redirect

Fault = Callable[[bytes], Answer]
"""Makes another answer of the right one."""

COMMIT = "83ee97c66e841048bedc5c02c15ce2f3ed259feb"
_OLDER = "f194f50981eaaa6019bbec5049a4c7e1fd294110"


class ModelScopeServer(ImageServer):
    """One repository, ``org/name``.

    Attributes:
        files: content by path.
        listed: fields of entries of the listing that differ from the truth, by path.
        revisions: branches and tags.
        redirected: paths that another host sends, ``localhost`` instead of ``127.0.0.1``.
        knows_ranges: whether ``Range`` is supported.
        token: what private repositories require, or None for a public one.
        faults: by path of a file, or ``listing``: the faults of the first answers, in turn.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        super().__init__()
        self.files = files
        self.listed: dict[str, dict[str, object]] = {}
        self.revisions = ["master"]
        self.redirected: set[str] = set()
        self.knows_ranges = True
        self.token: str | None = None
        self.faults: dict[str, list[Fault]] = {}

    def requested(self, path: str) -> list[str | None]:
        """The header ``Range`` of each request for a file's content."""
        heads = [head for head in self.heads if f"FilePath={path}&" in f"{head.split(' ')[1]}&"]
        return [_header(head, "Range") for head in heads]

    def answer_for(self, path: str) -> Answer:
        parts, head = urlsplit(path), self.heads[-1]
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        name = query.get("FilePath", "listing")
        if name in self.redirected and "Host: 127.0.0.1" in head:
            return redirect(self.url(path, host="localhost"))
        answer = self._right_answer(parts.path, query, head)
        faults = self.faults.get(name)
        return faults.pop(0)(answer) if faults else answer

    def _right_answer(self, path: str, query: dict[str, str], head: str) -> bytes:
        prefix = "/api/v1/models/org/name/"
        allowed = self.token is None or f"Bearer {self.token}" == _header(head, "Authorization")
        if not path.startswith(prefix) or not (allowed or query.get("FilePath") in self.redirected):
            return failure(404, 10010205001, "record not found")
        what = path.removeprefix(prefix)
        if what == "revisions":
            branches = [{"Revision": each} for each in self.revisions]
            return success({"RevisionMap": {"Branches": branches, "Tags": []}})
        if what == "repo/files":
            return success(self._listing(query["Revision"]))
        body = self.files.get(query["FilePath"])
        return failure(404, 10990101007, "file not found") if body is None else self._part(body, _header(head, "Range"))

    def _listing(self, revision: str) -> dict[str, object]:
        if revision not in self.revisions:
            return {"Files": None, "IsVisual": 0, "LatestCommitter": None}
        entries = [{"Path": "images", "Name": "images", "Type": "tree", "Size": 0, "Revision": _OLDER, "Sha256": ""}]
        entries += [self._entry(path, body) for path, body in self.files.items()]
        return {"Files": entries, "IsVisual": 0, "LatestCommitter": {"Id": "", "ShortId": COMMIT[:8]}}

    def _entry(self, path: str, body: bytes) -> dict[str, object]:
        digest = hashlib.sha256(body).hexdigest()
        commit = COMMIT if path == next(iter(self.files)) else _OLDER
        entry = {"Path": path, "Name": path, "Type": "blob", "Size": len(body), "Sha256": digest, "Revision": commit}
        return entry | {"IsLFS": path in self.redirected, "Mode": "33188", **self.listed.get(path, {})}

    def _part(self, body: bytes, wanted: str | None) -> bytes:
        match = re.fullmatch(r"bytes=(\d+)-", wanted or "")
        if match is None or not self.knows_ranges:
            return content(body)
        first = int(match[1])
        if first >= len(body):
            return content(b"", status="416 Range Not Satisfiable")
        place = f"bytes {first}-{len(body) - 1}/{len(body)}"
        return content(body[first:], status="206 Partial Content", Content_Range=place)


def success(data: object) -> bytes:
    """An answer with data."""
    return _json("200 OK", {"Code": 200, "Data": data, "Message": "success", "RequestId": "r", "Success": True})


def failure(status: int, code: int, message: str) -> bytes:
    """An answer with the site's own code."""
    return _json(f"{status} No", {"Code": code, "Message": message, "RequestId": "r", "Success": False})


def cut_after(count: int) -> Fault:
    """The connection ends after some bytes of the content."""
    return lambda answer: answer[: answer.index(b"\r\n\r\n") + 4 + count]


def status(code: int, **headers: str) -> Fault:
    """Another status."""
    return lambda _answer: content(b"", status=f"{code} No", **headers)


def reset(_answer: bytes) -> Answer:
    """The connection is reset before an answer."""
    return lambda connection: connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _json(line: str, value: object) -> bytes:
    return content(json.dumps(value).encode(), status=line, Content_Type="application/json")


def _header(head: str, name: str) -> str | None:
    match = re.search(rf"^{name}: (.*?)\r?$", head, re.IGNORECASE | re.MULTILINE)
    return None if match is None else match[1]
