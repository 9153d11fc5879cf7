"""What a report is written of: files and folders that the commands wrote."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from clipmlu.bundle.manifest import MANIFEST_NAME
from clipmlu.data.finding import JOB_FILE
from clipmlu.errors import InputError, reason_of
from clipmlu.file_names import name_from_path
from clipmlu.files.read import decode_json, read_small_file
from clipmlu.jobs.job import open_job
from clipmlu.jobs.state import JobState
from clipmlu.magicmind.mm_run import MmRunReport
from clipmlu.measure.accuracy.report import AccuracyReport, decode_report
from clipmlu.measure.compare.compare import ComparisonReport
from clipmlu.measure.retrieval.report import RetrievalReport
from clipmlu.measure.speed.speed import SpeedReport
from clipmlu.tune.run_report import RunReport
from clipmlu.tune.sweep_report import SweepReport
from clipmlu.tune.trial import SearchReport

AnyReport = (
    AccuracyReport
    | RetrievalReport
    | SpeedReport
    | MmRunReport
    | SweepReport
    | ComparisonReport
    | SearchReport
    | RunReport
    | JobState
)

_KINDS: tuple[tuple[type[Any], frozenset[str], str], ...] = (
    (AccuracyReport, frozenset({"top1", "per_class", "dataset"}), "clipmlu eval --output"),
    (RunReport, frozenset({"steps", "accuracy"}), "clipmlu run"),
    (RetrievalReport, frozenset({"image_to_text", "text_to_image", "pairs"}), "clipmlu eval --task retrieval --output"),
    (SpeedReport, frozenset({"towers", "open_s", "in_flight"}), "clipmlu bench --output"),
    (MmRunReport, frozenset({"tool", "summaries", "command"}), "clipmlu bench --tool mm_run --output"),
    (SweepReport, frozenset({"rows", "repetitions", "duration_ms"}), "clipmlu sweep"),
    (ComparisonReport, frozenset({"measured", "reference", "predictions"}), "clipmlu compare --output"),
    (SearchReport, frozenset({"trials", "max_drop", "reference_top1"}), "clipmlu compile --max-drop"),
)
"""Each kind of report, the fields that tell it from other files, and the command that writes it."""
_EXPECTED = "expected what eval, bench, compare (--output), sweep, run, 'compile --max-drop' or a bulk job wrote"
_SEARCH_NAME = "search.json"
_LEVELS = 2  # of folders below a given one: a run has one for each model, and in it one for each bundle


@dataclasses.dataclass(frozen=True)
class Input:
    """One report.

    Attributes:
        name: the file, or the folder of a job, as given.
        sha256: digest of the file's content in hex; empty for a job.
        report: the report.
    """

    name: str
    sha256: str
    report: AnyReport


def read_inputs(paths: Sequence[Path], on_note: Callable[[str], None] = lambda _message: None) -> list[Input]:
    """Read reports.

    Args:
        paths: report files, and folders: of a job, a run, a sweep or a bundle with a search, or with report files in them or
            in folders up to two levels below.
        on_note: called with a line about each damaged file of a folder, and each file with the content of another one.

    Returns:
        The reports, in the order of the paths and then of the names; each file once, and of files with equal content the first.

    Raises:
        InputError: there is no such path, a file is no report, or a folder holds none.
    """
    found: dict[Path, Input] = {}
    for path in paths:
        inside = dict(_in_folder(path, on_note)) if path.is_dir() else {path.resolve(): _read_file(path)}
        if not inside:
            raise InputError(f"Folder '{name_from_path(path)}' holds no report; {_EXPECTED}.")
        found |= {place: each for place, each in inside.items() if place not in found}
    return list(_distinct(found.values(), on_note))


def _distinct(inputs: Iterable[Input], on_note: Callable[[str], None]) -> Iterator[Input]:
    """Yield the first of the reports with equal content."""
    first: dict[str, str] = {}
    for each in inputs:
        if each.sha256 and first.setdefault(each.sha256, each.name) != each.name:
            on_note(f"left out: '{each.name}' has the content of '{first[each.sha256]}'")
        else:
            yield each


def _in_folder(folder: Path, on_note: Callable[[str], None]) -> Iterator[tuple[Path, Input]]:
    """Yield the reports of a folder and of the folders below it, by their resolved paths."""
    for path in _candidates(folder, _LEVELS):
        try:
            if path.is_dir():
                yield path.resolve(), Input(name_from_path(path), "", open_job(path).state())
            elif (found := _read_report(path)) is not None:
                yield path.resolve(), found
        except InputError as error:
            on_note(f"left out: {error}")


def _candidates(folder: Path, levels: int) -> Iterator[Path]:
    """Yield the JSON files that may be reports, and the folders of jobs; of a bundle only the report of its search."""
    if (folder / JOB_FILE).is_file():
        yield folder
        return
    if (folder / MANIFEST_NAME).is_file():
        if (folder / _SEARCH_NAME).is_file():
            yield folder / _SEARCH_NAME
        return
    yield from sorted(path for path in folder.glob("*.json") if path.is_file())
    if levels:
        for below in sorted(folder.iterdir()):
            if below.is_dir() and not below.is_symlink() and not below.name.startswith("."):
                yield from _candidates(below, levels - 1)


def _read_file(path: Path) -> Input:
    """Read one report.

    Raises:
        InputError: it cannot be read, is no report, or has the layout of another version.
    """
    found = _read_report(path)
    if found is None:
        raise InputError(f"'{name_from_path(path)}' is no report; {_EXPECTED}.")
    return found


def _read_report(path: Path) -> Input | None:
    """Read one report; None if the file is no report.

    Raises:
        InputError: it cannot be read, is damaged, or has the layout of another version.
    """
    name, content = name_from_path(path), _content_of(path)
    found = _kind_of(_decoded(path, content))
    if found is None:
        return None
    kind, command = found
    sha256 = hashlib.sha256(content).hexdigest()
    if kind is AccuracyReport:
        return Input(name, sha256, decode_report(name, content))
    try:
        return Input(name, sha256, decode_json(content, kind))
    except msgspec.DecodeError as error:
        raise InputError(
            f"'{name}' is not a report as this version's '{command}' writes it: {error}. Measure again, or use the version of "
            "clipmlu that wrote it."
        ) from error


def _content_of(path: Path) -> bytes:
    try:
        return read_small_file(path)
    except OSError as error:
        raise InputError(f"Cannot read the report '{name_from_path(path)}': {reason_of(error)}.") from error


def _decoded(path: Path, content: bytes) -> object:
    try:
        return decode_json(content, Any)
    except msgspec.DecodeError as error:
        raise InputError(f"'{name_from_path(path)}' is damaged or no JSON file: {error}; {_EXPECTED}.") from error


def _kind_of(value: object) -> tuple[type[Any], str] | None:
    """Return the type of a report and the command that writes it; None if the value is no report."""
    keys = value.keys() if isinstance(value, dict) else set()
    return next(((kind, command) for kind, fields, command in _KINDS if fields <= keys), None)
