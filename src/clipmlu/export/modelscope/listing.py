"""The files of a repository on ModelScope, as the site lists them."""

from __future__ import annotations

import dataclasses
import re

import msgspec

from clipmlu.export.http_client import AnswerError, HttpClient
from clipmlu.export.modelscope.repository import Repository
from clipmlu.export.transfer import RemoteFile
from clipmlu.files.read import Decoded, decode_json

_MOST_BYTES = 16 << 20
_LIMIT_S = 60.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PLAIN_NAME = re.compile(r"[\w-][\w.+@ -]*")
"""Names of files in the top folder, and none that leads elsewhere on any system."""
_SHOWN = 80


class _Named(msgspec.Struct, rename="pascal"):
    revision: str = ""


class _Entry(msgspec.Struct, rename="pascal"):
    path: str
    type: str = "blob"
    size: int | None = None
    sha256: str | None = None
    revision: str | None = None


class _Committer(msgspec.Struct, rename="pascal"):
    id: str | None = None
    short_id: str | None = None


class _Tree(msgspec.Struct, rename="pascal"):
    files: list[_Entry] | None = None
    latest_committer: _Committer | None = None


class _RevisionMap(msgspec.Struct, rename="pascal"):
    branches: list[_Named] | None = None
    tags: list[_Named] | None = None


class _Revisions(msgspec.Struct, rename="pascal"):
    revision_map: _RevisionMap | None = None


class _Outcome(msgspec.Struct, rename="pascal"):
    """What every answer of the site says about itself."""

    code: int | str = 200
    success: bool = True
    message: str | None = None


class _TreeAnswer(msgspec.Struct, rename="pascal"):
    data: _Tree | None = None


class _RevisionsAnswer(msgspec.Struct, rename="pascal"):
    data: _Revisions | None = None


class UnknownRevisionError(Exception):
    """A repository has no such revision, or no files; ``known`` are its branches and tags."""

    def __init__(self, known: tuple[str, ...]) -> None:
        self.known = known
        super().__init__(", ".join(known))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """The files of a revision.

    Attributes:
        commit: the revision's commit, or None if the site does not tell it.
        files: those in the top folder, by name.
    """

    commit: str | None
    files: dict[str, RemoteFile]


def ask_listing(client: HttpClient, repository: Repository) -> Listing:
    """Ask the site for the files of a repository.

    Raises:
        UnknownRevisionError: there is no such revision.
        StatusError, AnswerError, OSError, http.client.HTTPException: as ``HttpClient.get``, or the answer is no list of files.
    """
    query = {"Revision": repository.revision, "Recursive": "False"}
    tree = _ask(client, repository.url("repo/files", **query), _TreeAnswer).data
    if tree is None or not tree.files:
        raise UnknownRevisionError(_ask_revisions(client, repository))
    entries = [entry for entry in tree.files if entry.type != "tree" and _PLAIN_NAME.fullmatch(entry.path)]
    return Listing(commit=_commit(tree), files={entry.path: _remote_file(entry) for entry in entries})


def _ask_revisions(client: HttpClient, repository: Repository) -> tuple[str, ...]:
    found = _ask(client, repository.url("revisions"), _RevisionsAnswer).data
    known = None if found is None else found.revision_map
    return () if known is None else tuple(each.revision for each in [*(known.branches or ()), *(known.tags or ())])


def _remote_file(entry: _Entry) -> RemoteFile:
    if entry.size is None or entry.size < 0:
        raise AnswerError(f"lists '{entry.path}' without its size")
    digest = (entry.sha256 or "").lower()
    return RemoteFile(path=entry.path, size=entry.size, sha256=digest if _DIGEST.fullmatch(digest) else None)


def _commit(tree: _Tree) -> str | None:
    """Return the whole commit. The site's ``Id`` may be empty; then a file that the commit changed has the rest of ``ShortId``."""
    committer = tree.latest_committer or _Committer()
    commits = [committer.id, *(entry.revision for entry in tree.files or ())]
    short = committer.short_id or committer.id or " "
    return next((each for each in commits if each and each.startswith(short) and _COMMIT.fullmatch(each)), None)


def _ask(client: HttpClient, url: str, kind: type[Decoded]) -> Decoded:
    """Send a request for JSON and return it as ``kind``."""
    content = bytearray()
    with client.get(url, {"Accept": "application/json"}, limit_s=_LIMIT_S) as answer:
        for piece in answer.pieces():
            content += piece
            if len(content) > _MOST_BYTES:
                raise AnswerError(f"sends a list of more than {_MOST_BYTES:,} bytes")
    try:
        outcome = decode_json(bytes(content), _Outcome)
        if not outcome.success:
            raise AnswerError(f"answers with the code {outcome.code}{_quoted(outcome.message)}")
        return decode_json(bytes(content), kind)
    except msgspec.DecodeError as error:
        raise AnswerError("does not answer like ModelScope: a proxy's page, or a wrong address") from error


def _quoted(message: str | None) -> str:
    shown = "".join(each if each.isprintable() else " " for each in message or "")[:_SHOWN].strip()
    return f": '{shown}'" if shown else ""
