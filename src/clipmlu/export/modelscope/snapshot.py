"""A repository's files in the cache: downloaded once, verified, and safe for several processes."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

from clipmlu.bundle.manifest import FileRecord
from clipmlu.bundle.verify import file_record
from clipmlu.errors import DownloadError, OptionError
from clipmlu.export.download_reasons import cache_reason, causes, network_reason, status_reason
from clipmlu.export.downloads import offline_switch
from clipmlu.export.http_client import AnswerError, HttpClient, StatusError, is_redirect
from clipmlu.export.modelscope.listing import Listing, UnknownRevisionError, ask_listing
from clipmlu.export.modelscope.repository import Repository, checked_endpoint, parse_repository
from clipmlu.export.retrying import RETRIES, RetryPolicy, repeat
from clipmlu.export.transfer import CutError, DigestError, RemoteFile, interruption_of, receive_file
from clipmlu.files.folder_lock import lock_folder
from clipmlu.files.publish import encode_json
from clipmlu.files.read import read_json
from clipmlu.host import MODELSCOPE_ENDPOINT_VARIABLE, MODELSCOPE_TOKEN_VARIABLE, cache_dir, modelscope_token
from clipmlu.specs import Spec
from clipmlu.steps import StartStep, no_steps

_LOG = logging.getLogger("clipmlu.export")
_FOLDER = "modelscope"
_RECORD_NAME = ".clipmlu-download.json"
_TIMEOUT_S = 20.0
_NO_REPOSITORY = (401, 403, 404)

Choose = Callable[[Collection[str]], Sequence[str]]
"""Returns the names of the files that are needed, in the order of their download, from the names of all."""

Check = Callable[[Path], None]
"""Raises if the export cannot use a file, before further ones are downloaded."""


class _Record(Spec, frozen=True, kw_only=True):
    """What was downloaded to a folder.

    Attributes:
        commit: of the files, or None.
        listed: names of all files of the repository.
        files: the downloaded ones.
    """

    commit: str | None
    listed: tuple[str, ...]
    files: dict[str, FileRecord]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The needed files of a repository, on this machine.

    Attributes:
        folder: their folder.
        commit: of the repository, or None if the site does not tell it.
        digests: SHA-256 of each file, by name.
    """

    folder: Path
    commit: str | None
    digests: dict[str, str]


def fetch_repository(
    repository: Repository,
    choose: Choose,
    *,
    cache: str | os.PathLike[str] | None,
    offline: bool,
    check: Check = lambda _path: None,
    policy: RetryPolicy = RETRIES,
    on_step: StartStep = no_steps,
) -> Snapshot:
    """Return the needed files of a repository, from the cache or the site.

    Cached files are used without asking the site for newer ones, so that repeated exports give equal results.

    Args:
        repository: the repository.
        choose: chooses the needed files.
        cache: folder of downloads; None for clipmlu's own cache.
        offline: use the cache only.
        check: called with the path of each downloaded file.
        policy: further attempts.
        on_step: shows the download.

    Raises:
        DownloadError: a file is not in the cache and cannot be downloaded.
        OutputError: the cache cannot be written.
    """
    folder = _folder_of(repository, cache)
    found = _find(folder, choose)
    if found is not None:
        return found
    switch = offline_switch(offline=offline)
    if switch is not None:
        raise DownloadError(
            f"'{_name_of(repository)}' is not in the cache '{folder}', and the network is off ({switch}). Copy that folder from a "
            f"machine that exported the model, or give a directory with its files as local-dir:PATH."
        )
    wait = f"another process downloads '{_name_of(repository)}' to '{folder}': waiting for it"
    with lock_folder(folder, lambda: _LOG.warning(wait)):
        found = _find(folder, choose)
        if found is None:
            found = _Download(repository, folder, policy, on_step).run(choose, check)
    return found


def is_snapshot_current(place: str, version: str, cache: str | os.PathLike[str] | None) -> bool:
    """Return False if the cache holds another version of a file than the one that was used.

    Args:
        place: ``ms:org/name::file``, or ``ms:org/name`` for the commit, with the revision if one was given.
        version: digest of the file that was used, or the commit.
        cache: as for ``fetch_repository``.
    """
    model, _, name = place.partition("::")
    try:
        record = _read_record(_folder_of(parse_repository(model), cache))
    except OptionError:
        return True
    if record is None:
        return True
    known = {file: each.sha256 for file, each in record.files.items()} | {"": record.commit}
    return known.get(name) in (None, version)


def _folder_of(repository: Repository, cache: str | os.PathLike[str] | None) -> Path:
    root = cache_dir() if cache is None else Path(cache)
    return root / _FOLDER / repository.org / repository.name / quote(repository.revision, safe="")


def _find(folder: Path, choose: Choose) -> Snapshot | None:
    """Return the snapshot if all needed files are there, with their sizes."""
    record = _read_record(folder)
    if record is None:
        return None
    needed = choose(record.listed)
    if not all(_has(folder, name, record.files.get(name)) for name in needed):
        return None
    return Snapshot(folder=folder, commit=record.commit, digests={name: record.files[name].sha256 for name in needed})


def _has(folder: Path, name: str, record: FileRecord | None) -> bool:
    try:
        return record is not None and (folder / name).stat().st_size == record.size
    except OSError:
        return False


def _read_record(folder: Path) -> _Record | None:
    try:
        return read_json(folder / _RECORD_NAME, _Record)
    except (OSError, msgspec.DecodeError):  # no download yet, or a damaged file: it is asked for again
        return None


class _Download:
    """The download of a repository to a folder that is locked."""

    def __init__(self, repository: Repository, folder: Path, policy: RetryPolicy, on_step: StartStep) -> None:
        self._repository = repository
        self._folder = folder
        self._policy = policy
        self._on_step = on_step
        self._endpoint = checked_endpoint()
        self._client = HttpClient(_secrets(), _TIMEOUT_S)

    def run(self, choose: Choose, check: Check) -> Snapshot:
        """Download the needed files that are not there yet."""
        listing = self._ask_listing()
        record = _Record(commit=listing.commit, listed=tuple(sorted(listing.files)), files={})
        needed = [listing.files[name] for name in choose(record.listed)]
        self._check_space(needed)
        for file in needed:
            record = msgspec.structs.replace(record, files={**record.files, file.path: self._obtain(file)})
            check(self._folder / file.path)
        self._write_record(record)
        digests = {name: each.sha256 for name, each in record.files.items()}
        return Snapshot(folder=self._folder, commit=record.commit, digests=digests)

    def _ask_listing(self) -> Listing:
        name = self._repository.id
        with self._errors(name), self._on_step(f"asking ModelScope for {name}"):
            return repeat(
                lambda: ask_listing(self._client, self._repository),
                interruption_of,
                server=self._endpoint,
                policy=self._policy,
                on_step=self._on_step,
            )

    def _check_space(self, files: Sequence[RemoteFile]) -> None:
        """Raise before a download that the disk cannot hold."""
        wanted = sum(file.size for file in files) - sum(path.stat().st_size for path in self._folder.iterdir())
        free = shutil.disk_usage(self._folder).free
        if wanted > free:
            raise DownloadError(
                f"'{self._repository.id}' needs {wanted / 1e9:.1f} GB in the cache '{self._folder}', whose disk has "
                f"{free / 1e9:.1f} GB left. Make some space, or choose another place with --cache-dir."
            )

    def _obtain(self, file: RemoteFile) -> FileRecord:
        """Return the record of a file in the folder, after a download if it is not there with the listed digest."""
        target = self._folder / file.path
        if file.sha256 is not None and _has(self._folder, file.path, FileRecord(sha256=file.sha256, size=file.size)):
            found = file_record(target)
            if found.sha256 == file.sha256:
                return found
        name = f"{self._repository.id}/{file.path}"
        query = {"Revision": self._repository.revision, "FilePath": file.path}
        with self._errors(name, file):
            digest = receive_file(
                self._client,
                self._repository.url("repo", **query),
                file,
                target,
                server=self._endpoint,
                label=f"downloading {name}",
                policy=self._policy,
                on_step=self._on_step,
            )
        if file.sha256 is None:
            _LOG.warning("ModelScope lists no digest of '%s': only its size was checked", name)
        return FileRecord(sha256=digest, size=file.size)

    def _write_record(self, record: _Record) -> None:
        """Write the record, which says that the files are complete, in one step."""
        path = self._folder / _RECORD_NAME
        new = path.with_name(f"{path.name}.new")
        with self._errors(self._repository.id):
            new.write_bytes(encode_json(record))
            os.replace(new, path)

    @contextlib.contextmanager
    def _errors(self, name: str, file: RemoteFile | None = None) -> Iterator[None]:
        """Convert the errors of a request to a ``DownloadError`` of one line."""
        try:
            yield
        except (
            UnknownRevisionError,
            DigestError,
            CutError,
            StatusError,
            AnswerError,
            OSError,
            http.client.HTTPException,
        ) as error:
            raise DownloadError(f"Cannot download '{name}' from ModelScope: {self._reason(error, file)}.") from error

    def _reason(self, error: Exception, file: RemoteFile | None) -> str:
        if isinstance(error, UnknownRevisionError):
            return self._revision_reason(error.known)
        if isinstance(error, DigestError) and file is not None:
            announced = (file.sha256 or "")[:12]
            return f"it has the SHA-256 {error.found[:12]}..., expected was {announced}.... It was deleted; run again"
        if isinstance(error, CutError):
            return f"'{self._endpoint}' {error}. Run again: what was received is kept"
        if isinstance(error, AnswerError):
            return f"'{self._endpoint}' {error}. Check {MODELSCOPE_ENDPOINT_VARIABLE} and the name"
        if isinstance(error, StatusError):
            return self._status_reason(error.status, file)
        return self._system_reason(error)

    def _revision_reason(self, known: tuple[str, ...]) -> str:
        if self._repository.revision in known:
            return (
                f"'{self._repository.id}' has no files. Check its name at {self._endpoint}/models/{self._repository.id}"
            )
        others = f"it has {', '.join(known[:12])}" if known else "see its page"
        return f"'{self._repository.id}' has no revision '{self._repository.revision}'; {others}"

    def _status_reason(self, status: int, file: RemoteFile | None) -> str:
        if is_redirect(status):
            return f"'{self._endpoint}' redirects in a loop. Check {MODELSCOPE_ENDPOINT_VARIABLE}"
        if status not in _NO_REPOSITORY or (file is not None and status == http.HTTPStatus.NOT_FOUND):
            return status_reason(status, self._endpoint, MODELSCOPE_TOKEN_VARIABLE)
        token = f"set {MODELSCOPE_TOKEN_VARIABLE} to a token of your account ({self._endpoint}/my/myaccesstoken)"
        if modelscope_token() is not None:
            token = f"the token in {MODELSCOPE_TOKEN_VARIABLE} may be wrong, or may lack the permission"
        return f"'{self._endpoint}' has no '{self._repository.id}', or it is private. Check the name; for a private one {token}"

    def _system_reason(self, error: Exception) -> str:
        for each in causes(error):
            found = cache_reason(each, str(self._folder))
            if found is not None:
                return found
            found = network_reason(each, self._endpoint, MODELSCOPE_ENDPOINT_VARIABLE)
            if found is not None:
                end = "" if found.endswith("?") else "."
                return f"{found}{end} The cache '{self._folder}' does not hold it; a directory with its files is local-dir:PATH"
        return f"'{self._endpoint}' does not answer with valid HTTP. Check {MODELSCOPE_ENDPOINT_VARIABLE}"


def _secrets() -> Mapping[str, str]:
    """Return the headers with the token, if there is one.

    Raises:
        DownloadError: the token cannot be sent.
    """
    token = modelscope_token()
    if token is None:
        return {}
    if not token.isascii() or not token.isprintable() or " " in token or ";" in token:
        raise DownloadError(f"{MODELSCOPE_TOKEN_VARIABLE} holds no token: it has characters that no token has.")
    return {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"}


def _name_of(repository: Repository) -> str:
    return f"ms:{repository.id}@{repository.revision}"
