"""Repositories of a hub that become directories: the files that an export needs are fetched, and the directory is the source."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from clipmlu.errors import DownloadError
from clipmlu.export.configuration import parse_config, parse_transformers_config
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
from clipmlu.export.downloads import are_cached, cached_snapshot, fetch_file, list_files, record_cached, record_version
from clipmlu.export.modelscope.repository import PREFIX as MODELSCOPE_PREFIX
from clipmlu.export.modelscope.repository import parse_repository
from clipmlu.export.modelscope.snapshot import fetch_repository, is_snapshot_current
from clipmlu.export.options import ExportOptions
from clipmlu.export.source import Source, local_source
from clipmlu.steps import StartStep, no_steps

_HINT = (
    "Copy the repository's files into that cache (HF_HOME or --cache-dir) from a machine that has them, or give a directory of "
    "them as local-dir:PATH."
)
_PREFERRED: Mapping[str, Library] = {"hf:": "transformers", MODELSCOPE_PREFIX: "open_clip"}
"""Maps the prefix of a name to the library whose format is taken if a repository has the files of both."""

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
    return local_source(source.identity, fetch(source, options, on_step), prefer=_PREFERRED[source.hub or ""])


def are_current(versions: Mapping[str, str], cache_dir: str | os.PathLike[str] | None) -> bool:
    """Return False if a cache now holds another version of a recorded file; files missing in the cache are ignored.

    Args:
        versions: ``hub_files`` of a manifest.
        cache_dir: as in ``ExportOptions``.
    """
    others = {place: version for place, version in versions.items() if not place.startswith(MODELSCOPE_PREFIX)}
    return are_cached(others, cache_dir) and all(
        is_snapshot_current(place, versions[place], cache_dir) for place in versions.keys() - others.keys()
    )


def files_to_fetch(names: Collection[str], *, weights: bool = True, prefer: Library = "transformers") -> list[str]:
    """Return the files of a repository that an export needs, the weights last; empty if it is no model's.

    Args:
        names: all files of the repository.
        weights: whether trained weights are needed.
        prefer: the library to take if the repository has the files of both.
    """
    library = library_of(names, prefer=prefer)
    if library is None:
        return []
    return [*described_files(names, library), *(weights_files(names, library) if weights else ())]


def missing_file(names: Collection[str], *, weights: bool = True) -> str | None:
    """Return a file that a directory lacks, of those without which there is no export; None if it has all.

    Args:
        names: all files of the directory.
        weights: whether trained weights are needed.
    """
    library = library_of(names, prefer="transformers")
    if library is None:
        return CONFIG_NAMES["transformers"]
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
        raise _no_model(source.repo)
    for name in wanted:  # without the cache, where files of an older version would be in another directory
        path = fetch_file(
            source.repo, [name], cache_dir=options.cache_dir, offline=False, fresh=True, hint=_HINT, on_step=on_step
        )
        _check_config(path)
    return path.parent


def _fetch_from_modelscope(source: Source, options: ExportOptions, on_step: StartStep) -> Path:
    """Return the folder of a repository in clipmlu's cache of ModelScope."""
    name = source.identity.name

    def choose(names: Collection[str]) -> list[str]:
        wanted = files_to_fetch(names, weights=not source.random, prefer=_PREFERRED[MODELSCOPE_PREFIX])
        if not wanted:
            raise _no_model(name)
        return wanted

    found = fetch_repository(
        parse_repository(name),
        choose,
        cache=options.cache_dir,
        offline=options.offline,
        check=_check_config,
        on_step=on_step,
    )
    for file, digest in found.digests.items():
        record_version(f"{name}::{file}", digest)
    if found.commit is not None:
        record_version(name, found.commit)
    return found.folder


def _no_model(repo: str) -> DownloadError:
    configs = " nor ".join(CONFIG_NAMES.values())
    return DownloadError(f"'{repo}' has neither {configs}, so it is no model of open_clip or transformers.")


def _check_config(path: Path) -> None:
    """Check a configuration before gigabytes of weights are downloaded; other files pass."""
    if path.name == CONFIG_NAMES["transformers"]:
        parse_transformers_config(path)
    elif path.name == CONFIG_NAMES["open_clip"]:
        parse_config(path)


FETCHERS: Mapping[str, Fetcher] = {"hf:": _fetch_from_hugging_face, MODELSCOPE_PREFIX: _fetch_from_modelscope}
"""Maps the prefix of a name to what fetches such a repository."""
