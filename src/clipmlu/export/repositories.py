"""Repositories of a hub that become directories: the files that an export needs are fetched, and the directory is the source."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from clipmlu.errors import DownloadError
from clipmlu.export.configuration import parse_transformers_config
from clipmlu.export.directories import (
    CONFIG_NAMES,
    TOKENIZER_FILES,
    WEIGHTS_NAMES,
    Library,
    described_files,
    has_tokenizer,
    library_of,
    weights_files,
    weights_of,
)
from clipmlu.export.downloads import cached_snapshot, fetch_file, list_files, record_cached
from clipmlu.export.options import ExportOptions
from clipmlu.export.source import Source, local_source
from clipmlu.steps import StartStep, no_steps

_HINT = (
    "Copy the repository's files into that cache (HF_HOME or --cache-dir) from a machine that has them, or give a directory of "
    "them as local-dir:PATH."
)
_PREFERRED: Library = "transformers"

Fetcher = Callable[[Source, ExportOptions, StartStep], Path]
"""Fetches the files of a repository that an export needs, and returns their directory."""


def fetch_directory(source: Source, options: ExportOptions, on_step: StartStep = no_steps) -> Source:
    """Return the source of a repository's directory, after its files are fetched; all other sources as they are.

    Raises:
        DownloadError: a file is neither cached nor can it be downloaded.
        ExportError: as for ``local_source``.
    """
    fetch = FETCHERS.get(source.hub or "")
    if fetch is None:
        return source
    return local_source(source.identity, fetch(source, options, on_step), prefer=_PREFERRED)


def files_to_fetch(names: Collection[str], *, weights: bool = True) -> list[str]:
    """Return the files of a repository that an export needs, the weights last; empty if it is no model's.

    Args:
        names: all files of the repository.
        weights: whether trained weights are needed.
    """
    library = library_of(names, prefer=_PREFERRED)
    if library is None:
        return []
    return [*described_files(names, library), *(weights_files(names, library) if weights else ())]


def missing_file(names: Collection[str], *, weights: bool = True) -> str | None:
    """Return a file that a directory lacks, of those without which there is no export; None if it has all.

    Args:
        names: all files of the directory.
        weights: whether trained weights are needed.
    """
    library = library_of(names, prefer=_PREFERRED)
    if library is None:
        return CONFIG_NAMES[_PREFERRED]
    if weights and weights_of(names, library) is None:
        return WEIGHTS_NAMES[library][0]
    return None if has_tokenizer(names) else TOKENIZER_FILES[0]


def _fetch_from_hugging_face(source: Source, options: ExportOptions, on_step: StartStep) -> Path:
    """Return the snapshot of a repository in the cache of huggingface_hub.

    If it has all that is needed, the hub is not asked for a newer one, so that repeated exports give equal results.
    """
    assert source.repo is not None, "a source with a hub has a repository"
    weights, cached = not source.random, cached_snapshot(source.repo, options.cache_dir)
    names = [] if cached is None else [path.name for path in cached.iterdir()]
    missing = missing_file(names, weights=weights)
    if cached is not None and missing is None:
        record_cached(source.repo, [cached / name for name in files_to_fetch(names, weights=weights)])
        return cached
    found = list_files(
        source.repo, missing or "", cache_dir=options.cache_dir, offline=options.offline, hint=_HINT, on_step=on_step
    )
    wanted = files_to_fetch(found, weights=weights)
    if not wanted:
        configs = " nor ".join(CONFIG_NAMES.values())
        raise DownloadError(f"'{source.repo}' has neither {configs}, so it is no model of open_clip or transformers.")
    for name in wanted:  # without the cache, where files of an older version would be in another directory
        path = fetch_file(
            source.repo, [name], cache_dir=options.cache_dir, offline=False, fresh=True, hint=_HINT, on_step=on_step
        )
        if name == CONFIG_NAMES["transformers"]:
            parse_transformers_config(path)  # before gigabytes of weights
    return path.parent


FETCHERS: Mapping[str, Fetcher] = {"hf:": _fetch_from_hugging_face}
"""Maps the prefix of a name to what fetches such a repository."""
