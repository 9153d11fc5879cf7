"""Files from the Hugging Face hub: from the cache if they are there, else one attempt, else one clear line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from clipmlu._imports import require
from clipmlu.errors import DownloadError

_TIMEOUT_S = 10.0
_PURPOSE = "Downloading a model"

# What open_clip looks for in a repository, in its order (``pretrained.download_pretrained_from_hf``).
_USUAL_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def checkpoint_names(filename: str) -> tuple[str, ...]:
    """The names to try for a checkpoint of open_clip's list, best first.

    Args:
        filename: as listed; empty for a repository with one of the usual names.
    """
    if not filename or filename in _USUAL_NAMES:
        return _USUAL_NAMES
    path = Path(filename)
    return (str(path.with_suffix(".safetensors")), filename) if path.suffix in (".bin", ".pth") else (filename,)


def fetch_file(
    repo: str, names: Sequence[str], *, cache_dir: str | os.PathLike[str] | None, offline: bool, hint: str
) -> Path:
    """Get the first of several files that a repository has.

    A file in the cache is used as it is, without asking the hub whether there is a newer one: what was exported
    yesterday exports to the same today. The network gets one attempt of bounded length; huggingface_hub's own would
    repeat it for half a minute.

    Args:
        repo: ``org/name``.
        names: file names, best first.
        cache_dir: huggingface_hub's cache directory; None for its default.
        offline: look into the cache only.
        hint: what to do where the file cannot be had, a sentence.

    Raises:
        DownloadError: none of the files is in the cache, and none can be downloaded.
    """
    hub = require("huggingface_hub", "export", _PURPOSE)
    errors = require("huggingface_hub.errors", "export", _PURPOSE)
    constants = require("huggingface_hub.constants", "export", _PURPOSE)
    for name in names:
        cached = hub.try_to_load_from_cache(repo, name, cache_dir=cache_dir)
        if isinstance(cached, str):
            return Path(cached)
    wanted = f"{repo}/{names[0]}"
    if offline or constants.HF_HUB_OFFLINE:
        cache = cache_dir or constants.HF_HUB_CACHE
        raise DownloadError(f"'{wanted}' is not in the cache '{cache}', and the network is off. {hint}")
    for name in names:
        try:
            # The question is cheap and not repeated; the download itself is, but only after the hub has answered.
            hub.get_hf_file_metadata(hub.hf_hub_url(repo, name), timeout=_TIMEOUT_S)
            return Path(hub.hf_hub_download(repo, name, cache_dir=cache_dir, etag_timeout=_TIMEOUT_S))
        except (errors.GatedRepoError, errors.RepositoryNotFoundError) as error:
            raise DownloadError(_message(wanted, "the repository does not exist, or needs a login", hint)) from error
        except errors.EntryNotFoundError as error:
            if isinstance(error, errors.LocalEntryNotFoundError):  # how a failed connection is reported
                raise DownloadError(_message(wanted, _reason(error), hint)) from error
        except Exception as error:  # the HTTP library below differs from version to version, and so do its errors
            raise DownloadError(_message(wanted, _reason(error), hint)) from error
    raise DownloadError(_message(wanted, f"the repository has no {' or '.join(names)}", hint))


def is_hub_reachable(repo: str, name: str) -> bool:
    """Whether the hub answers at all, found out with one question of bounded length.

    For code of other libraries that would look for a newer version of cached files and not give up for a minute.
    """
    hub = require("huggingface_hub", "export", _PURPOSE)
    errors = require("huggingface_hub.errors", "export", _PURPOSE)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(repo, name), timeout=_TIMEOUT_S)
    except errors.HfHubHTTPError:
        return True
    except Exception:  # as in fetch_file
        return False
    return True


def _message(wanted: str, reason: str, hint: str) -> str:
    return f"Cannot download '{wanted}': {reason}. {hint}"


def _reason(error: BaseException) -> str:
    """One short line out of an error that may be a paragraph."""
    text = " ".join(str(error).split()).rstrip(".")
    return (text[:160] + "...") if len(text) > 160 else text or type(error).__name__
