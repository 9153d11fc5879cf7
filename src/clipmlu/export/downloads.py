"""Files from the Hugging Face hub: from the cache, or with one download attempt, with one clear error line."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from clipmlu.errors import DownloadError
from clipmlu.export.download_reasons import PURPOSE, causes, digest_of, download_reason, ways_out
from clipmlu.export.retrying import RETRIES, Interruption, RetryPolicy, interruption_of_status, repeat
from clipmlu.host import require
from clipmlu.steps import BYTES, StartStep, Step, no_steps

_RECORD: contextvars.ContextVar[dict[str, str] | None] = contextvars.ContextVar("files of the hub", default=None)
_TIMEOUT_S = 10.0

# File names that open_clip looks for in a repository, in its order (``pretrained.download_pretrained_from_hf``).
_USUAL_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def checkpoint_names(filename: str) -> tuple[str, ...]:
    """Return the file names to try for a checkpoint of open_clip's list, best first.

    Args:
        filename: the listed name; empty for a repository with one of the usual names.
    """
    if not filename or filename in _USUAL_NAMES:
        return _USUAL_NAMES
    path = Path(filename)
    return (str(path.with_suffix(".safetensors")), filename) if path.suffix in (".bin", ".pth") else (filename,)


@contextlib.contextmanager
def record_downloads() -> Iterator[dict[str, str]]:
    """Record the files that ``fetch_file`` returns within the block: maps ``org/name::file`` to its version."""
    record: dict[str, str] = {}
    token = _RECORD.set(record)
    try:
        yield record
    finally:
        _RECORD.reset(token)


def are_cached(record: Mapping[str, str], cache_dir: str | os.PathLike[str] | None) -> bool:
    """Return False if the cache now holds another version of a recorded file; files missing in the cache are ignored."""
    if not record or util.find_spec("huggingface_hub") is None:
        return True
    hub = require("huggingface_hub", "export", PURPOSE)
    for place, version in record.items():
        repo, _, file = place.partition("::")
        cached = hub.try_to_load_from_cache(repo, file, cache_dir=cache_dir)
        if isinstance(cached, str) and _version_of(cached) != version:
            return False
    return True


def _version_of(cached: str) -> str:
    """Return the digest that names a file's content in the cache, or else the commit."""
    content = Path(cached).resolve()
    if content.parent.name == "blobs":
        return content.name
    parts = Path(cached).parts
    return parts[len(parts) - parts[::-1].index("snapshots")]


def fetch_file(
    repo: str,
    names: Sequence[str],
    *,
    cache_dir: str | os.PathLike[str] | None,
    offline: bool,
    hint: str,
    fresh: bool = False,
    on_step: StartStep = no_steps,
    policy: RetryPolicy = RETRIES,
) -> Path:
    """Return the first available of several files of a repository; see ``_fetch_file`` and ``record_downloads``."""
    path, name = _fetch_file(
        repo, names, cache_dir=cache_dir, offline=offline, hint=hint, fresh=fresh, on_step=on_step, policy=policy
    )
    record_version(f"{repo}::{name}", _version_of(str(path)))
    return path


def record_cached(repo: str, paths: Iterable[Path]) -> None:
    """Record files in the cache that are used without ``fetch_file``."""
    for path in paths:
        record_version(f"{repo}::{path.name}", _version_of(str(path)))


def record_version(place: str, version: str) -> None:
    """Record the version of a file from a hub, within ``record_downloads``."""
    record = _RECORD.get()
    if record is not None:
        record[place] = version


def cached_snapshot(repo: str, cache_dir: str | os.PathLike[str] | None) -> Path | None:
    """Return the directory in the cache with the files of a repository's last known version, or None."""
    storage = require("huggingface_hub.file_download", "export", PURPOSE)
    constants = require("huggingface_hub.constants", "export", PURPOSE)
    folder = Path(cache_dir or constants.HF_HUB_CACHE) / storage.repo_folder_name(repo_id=repo, repo_type="model")
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and snapshot.is_dir() else None


def list_files(
    repo: str,
    wanted: str,
    *,
    cache_dir: str | os.PathLike[str] | None,
    offline: bool,
    hint: str,
    on_step: StartStep = no_steps,
    policy: RetryPolicy = RETRIES,
) -> list[str]:
    """Ask the hub for the names of a repository's files.

    Args:
        repo: ``org/name``.
        wanted: a file that is not in the cache, for messages.
        cache_dir: huggingface_hub's cache directory, for messages; None for its default.
        offline: the network is not to be used.
        hint: a sentence with advice.
        on_step: shows the request, and its pauses.
        policy: further attempts, if the hub is busy or cuts a connection.

    Raises:
        DownloadError: the hub does not answer, or has no such repository; or the network is off.
    """
    hub = require("huggingface_hub", "export", PURPOSE)
    constants = require("huggingface_hub.constants", "export", PURPOSE)
    place, cache = f"{repo}/{wanted}", str(cache_dir or constants.HF_HUB_CACHE)
    _check_online(repo, place, cache, offline=offline, hint=hint)
    try:
        with _quiet_hub(), on_step(f"asking for the files of {repo}"):
            info = repeat(
                lambda: hub.HfApi(endpoint=constants.ENDPOINT).model_info(repo, timeout=_TIMEOUT_S),
                interruption_of=_interruption_of,
                server=constants.ENDPOINT,
                policy=policy,
                on_step=on_step,
            )
    except Exception as error:  # as for a download
        raise DownloadError(_message(place, download_reason(error, repo, cache), hint)) from error
    return [each.rfilename for each in info.siblings or ()]


def _check_online(repo: str, place: str, cache: str, *, offline: bool, hint: str) -> None:
    if (switch := offline_switch(offline=offline)) is not None:
        reason = f"'{place}' is not in the cache '{cache}', and the network is off ({switch})"
        raise DownloadError(f"{reason}. {ways_out(repo)}. {hint}")


def _fetch_file(
    repo: str,
    names: Sequence[str],
    *,
    cache_dir: str | os.PathLike[str] | None,
    offline: bool,
    hint: str,
    fresh: bool,
    on_step: StartStep,
    policy: RetryPolicy,
) -> tuple[Path, str]:
    """Return the path and the name of the file.

    A cached file is used without asking the hub for a newer one, so that repeated exports give equal results. A
    hub that cannot be reached is asked once with a time limit; huggingface_hub would repeat it for half a minute.

    Args:
        repo: ``org/name``.
        names: file names, best first.
        cache_dir: huggingface_hub's cache directory; None for its default.
        offline: use the cache only.
        hint: a sentence with advice if the file is not available.
        fresh: ask the hub even if a version is cached.
        on_step: shows a download, and its pauses.
        policy: further attempts, if the hub is busy or cuts a connection.

    Raises:
        DownloadError: no file is cached and none can be downloaded, or its digest is not the announced one.
    """
    hub = require("huggingface_hub", "export", PURPOSE)
    errors = require("huggingface_hub.errors", "export", PURPOSE)
    constants = require("huggingface_hub.constants", "export", PURPOSE)
    for name in () if fresh else names:
        cached = hub.try_to_load_from_cache(repo, name, cache_dir=cache_dir)
        if isinstance(cached, str):
            return Path(cached), name
    wanted, cache = f"{repo}/{names[0]}", str(cache_dir or constants.HF_HUB_CACHE)
    _check_online(repo, wanted, cache, offline=offline, hint=hint)
    repeated = functools.partial(
        repeat, interruption_of=_interruption_of, server=constants.ENDPOINT, policy=policy, on_step=on_step
    )
    for name in names:
        try:
            path, digest = _download(repo, name, cache_dir, repeated, on_step)
        except Exception as error:  # the HTTP library and its errors differ between versions
            if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
                continue
            raise DownloadError(_message(wanted, download_reason(error, repo, cache), hint)) from error
        _check_digest(path, digest, wanted, hint)
        return path, name
    raise DownloadError(_message(wanted, f"the repository has no {' or '.join(names)}", hint))


def _download(
    repo: str,
    name: str,
    cache_dir: str | os.PathLike[str] | None,
    repeated: Callable[[Callable[[], Any]], Any],
    on_step: StartStep,
) -> tuple[Path, str | None]:
    """Return the path of a file and its announced digest, or None; ``repeated`` calls a request until it succeeds."""
    hub = require("huggingface_hub", "export", PURPOSE)
    with _quiet_hub():
        with on_step(f"asking for {repo}/{name}"):
            facts = repeated(lambda: hub.get_hf_file_metadata(hub.hf_hub_url(repo, name), timeout=_TIMEOUT_S))
        with on_step(f"downloading {repo}/{name}", total=facts.size, unit=BYTES) as step:
            bar = {"tqdm_class": _bar_class(step)} if _takes_bar(hub.hf_hub_download) else {}
            options = {"cache_dir": cache_dir, "etag_timeout": _TIMEOUT_S, **bar}
            return Path(repeated(lambda: hub.hf_hub_download(repo, name, **options))), digest_of(facts)


def offline_switch(*, offline: bool) -> str | None:
    """Return what keeps off the network, ``--offline`` or the variable HF_HUB_OFFLINE, or None.

    Args:
        offline: whether the user's option does.
    """
    if offline:
        return "--offline"
    constants = require("huggingface_hub.constants", "export", PURPOSE)
    return "HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else None


def _interruption_of(error: Exception) -> Interruption | None:
    """Return why a request to the hub may succeed later: it is busy, or the connection was reset while a file arrived."""
    errors = require("huggingface_hub.errors", "export", PURPOSE)
    for each in causes(error):
        if isinstance(each, errors.HfHubHTTPError) and each.response is not None:
            return interruption_of_status(int(each.response.status_code), each.response.headers.get("Retry-After"))
        if isinstance(each, ConnectionResetError):  # huggingface_hub continues other connections that end early
            return Interruption(reason="cut the connection")
    return None


def is_hub_reachable(repo: str, name: str) -> bool:
    """Return whether the hub answers one request within the time limit.

    It is called before code of other libraries that would try for a minute to find a newer version of cached files.
    """
    hub = require("huggingface_hub", "export", PURPOSE)
    errors = require("huggingface_hub.errors", "export", PURPOSE)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, name), timeout=_TIMEOUT_S)
    except errors.HfHubHTTPError:
        return True
    except Exception:  # as in fetch_file
        return False
    return True


def _message(wanted: str, reason: str, hint: str) -> str:
    return f"Cannot download '{wanted}': {reason}. {hint}"


def _check_digest(path: Path, expected: str | None, wanted: str, hint: str) -> None:
    """Raise if a file's digest is not the announced one, and remove the file from the cache."""
    if expected is None:
        return
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        reason = f"the downloaded file has the SHA-256 {found[:12]}..., expected was {expected[:12]}.... It was deleted; run again"
        raise DownloadError(_message(wanted, reason, hint))


def _takes_bar(download: Callable[..., Any]) -> bool:
    """Return whether huggingface_hub is new enough to report how far a download is."""
    return "tqdm_class" in inspect.signature(download).parameters


def _bar_class(step: Step) -> type[Any]:
    """Return a class of progress bars for huggingface_hub that show nothing and advance a step by their bytes."""
    tqdm: Any = require("tqdm.auto", "export", PURPOSE).tqdm
    received = 0

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **{**options, "disable": True})
            self.update(int(options.get("initial") or 0) - received)  # a further attempt has a bar of its own

        def update(self, n: float | None = 1) -> None:
            nonlocal received
            received += int(n or 0)
            step.advance(int(n or 0))

    return Bar


@contextlib.contextmanager
def _quiet_hub() -> Iterator[None]:
    """Disable the log of huggingface_hub within the block; clipmlu reports errors itself."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
