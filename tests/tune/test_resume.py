"""Stored results: what is used again, what is not, and that the reason is said."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec
import pytest

import support
from clipmlu.backends import SessionOptions
from clipmlu.bundle.directory import ExportedBundle
from clipmlu.compile.plan import CompileOptions, plan_compilation
from clipmlu.compile.quantisation import QuantisationChoice
from clipmlu.data.calibration import CalibrationOptions, obtain_calibration
from clipmlu.errors import BundleExistsError, OutputError
from clipmlu.keys import make_key, value_digest
from clipmlu.specs import Precision, QuantisationOptions, Spec
from clipmlu.tune.bundles import compilation_key, obtain_compiled
from clipmlu.tune.resume import ResultStore


class _Pair(Spec, frozen=True):
    first: int
    second: list[float]


PAIR = _Pair(first=1, second=[5.0, 0.1])
KEY = make_key(model="a", options={"batch_size": 4})


@pytest.fixture
def notes() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, notes: list[str]) -> ResultStore:
    return ResultStore(tmp_path / "results", notes.append)


def test_a_result_is_used_under_an_equal_key(store: ResultStore, notes: list[str]) -> None:
    assert store.load("pair", KEY, _Pair) is None
    store.save("pair", KEY, PAIR)
    assert store.load("pair", dict(reversed(KEY.items())), _Pair) == PAIR
    assert (store.count(), notes) == (1, [])
    (store.folder / "notes.txt").write_text("of the user")
    store.clear()
    assert (store.load("pair", KEY, _Pair), store.count()) == (None, 0)
    assert [path.name for path in store.folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ({**KEY, "options": value_digest({"batch_size": 8})}, "other options"),
        ({"model": KEY["model"]}, "other options"),
        ({**KEY, "tool_versions": "1"}, "other tool versions"),
        ({}, "other model, options"),
    ],
)
def test_another_key_is_a_note_with_the_parts_that_differ(
    store: ResultStore, notes: list[str], key: dict[str, str], named: str
) -> None:
    store.save("pair", KEY, PAIR)
    assert store.load("pair", key, _Pair) is None
    assert notes == [f"not reusing {store.folder / 'pair.json'}: it was made with {named}"]


@pytest.mark.parametrize(
    ("old", "new"), [('"first": 1', '"first": 2'), ("0.1", "0.2"), ('"seal"', '"leas"'), ('"key"', '"third": 1, "key"')]
)
def test_a_changed_file_is_not_used(store: ResultStore, notes: list[str], old: str, new: str) -> None:
    store.save("pair", KEY, PAIR)
    path = store.folder / "pair.json"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    assert store.load("pair", KEY, _Pair) is None
    assert len(notes) == 1
    assert notes[0].startswith(f"not reusing {path}: it is damaged or of another version")


def test_foreign_content_is_a_note_with_the_reason(store: ResultStore, notes: list[str]) -> None:
    store.save("pair", KEY, {"first": "a text", "second": []})
    assert store.load("pair", KEY, _Pair) is None
    (store.folder / "pair.json").write_text("{")
    assert store.load("pair", KEY, _Pair) is None
    (store.folder / "folder.json").mkdir()
    assert store.load("folder", KEY, _Pair) is None
    assert [note.split(": ")[-1] for note in notes] == [
        "Expected `int`, got `str` - at `$.first`",
        "Input data was truncated",
        "it is a directory",
    ]


def test_an_attempt_is_no_result(store: ResultStore) -> None:
    store.begin("pair", KEY)
    assert store.is_begun("pair", KEY)
    assert store.load("pair", KEY, _Pair) is None
    assert not store.is_begun("pair", {**KEY, "model": "b"})
    store.save("pair", KEY, PAIR)
    assert not store.is_begun("pair", KEY)


def test_results_are_told_when_they_are_there(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []
    folder = tmp_path / "results"
    store = ResultStore(
        folder,
        told.append,
        lambda name: told.append((name, msgspec.json.decode((folder / f"{name}.json").read_bytes()))),
    )
    store.begin("pair", KEY)
    store.save("pair", KEY, PAIR)
    assert [(name, content["result"]) for name, content in told] == [("pair", {"first": 1, "second": [5.0, 0.1]})]


def test_values_without_a_known_content_have_no_digest() -> None:
    import numpy as np

    with pytest.raises(TypeError, match="a ndarray has no digest"):
        value_digest({"pixels": np.zeros(10_000)})
    assert value_digest(Path("a\udcff")) == value_digest("a\udcff") != value_digest("a")
    assert value_digest({"a": 1, "b": {2, 3}}) == value_digest({"b": {3, 2}, "a": 1})


@dataclasses.dataclass(frozen=True)
class _Other:
    """A value that equals no other."""

    text: str = "another value"


def altered(options: Any, name: str) -> Any:
    """A copy of options, whose field holds another value of whatever type."""
    copy = dataclasses.replace(options)
    object.__setattr__(copy, name, _Other())
    return copy


def fields_of(kind: type, *, without: Collection[str]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind) if field.name not in without]


INT8 = CompileOptions(
    target="cpu",
    precision=Precision.QINT8_MIXED_FLOAT32,
    calibration=CalibrationOptions(dataset="demo", samples=8),
    text_target="cpu",
)


_RESOLVED = ("target", "quantisation")  # by the plan


@pytest.mark.parametrize("name", fields_of(CompileOptions, without=(*_RESOLVED, "calibration", "session", "overwrite")))
def test_each_option_decides_a_compiled_bundle(exported: ExportedBundle, name: str) -> None:
    options = dataclasses.replace(INT8, calibration=obtain_calibration(exported, INT8.calibration))  # type: ignore[arg-type]
    plan = plan_compilation(options)
    key = compilation_key(exported, plan, options)
    assert compilation_key(exported, plan, dataclasses.replace(options, overwrite=True)) == key
    changed = compilation_key(exported, plan, altered(options, name))
    assert [part for part in key if changed[part] != key[part]] == [f"compile.{name}"]


def test_the_quantisation_options_that_are_used_decide_a_compiled_bundle(exported: ExportedBundle) -> None:
    calibration = obtain_calibration(exported, INT8.calibration)  # type: ignore[arg-type]

    def key_with(given: QuantisationOptions | QuantisationChoice | None) -> dict[str, str]:
        options = dataclasses.replace(INT8, calibration=calibration, quantisation=given)
        return compilation_key(exported, plan_compilation(options), options)

    recommended, vendor = key_with(None), key_with(QuantisationOptions())
    assert key_with(QuantisationChoice()) == recommended
    assert key_with(QuantisationChoice(name="vendor")) == vendor
    assert [part for part in vendor if vendor[part] != recommended[part]] == ["compile.quantisation"]


@pytest.mark.parametrize("name", fields_of(SessionOptions, without=("in_flight", "busy_wait", "one_of_several")))
def test_each_option_of_the_session_decides_a_compiled_bundle(exported: ExportedBundle, name: str) -> None:
    options = CompileOptions(target="cpu")
    plan = plan_compilation(options)
    other = dataclasses.replace(options)
    object.__setattr__(other, "session", altered(options.session, name))
    assert compilation_key(exported, plan, options)[f"session.{name}"] != value_digest(_Other())
    # The version of the runtime is asked with the options as they are.
    key = compilation_key(exported, plan, other)
    assert key[f"session.{name}"] == value_digest(_Other())


HOLD = """
import sys
from pathlib import Path
from clipmlu.tune.resume import ResultStore
with ResultStore(Path(sys.argv[1]), print).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_waits_until_the_first_one_ends(store: ResultStore, tmp_path: Path) -> None:
    waits: list[str] = []
    command = [sys.executable, "-c", HOLD, str(store.folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"

        def kill(note: str) -> None:
            waits.append(note)
            first.kill()

        with ResultStore(store.folder, kill).lock():
            assert first.wait(20) == -signal.SIGKILL
            assert store.folder.is_dir()
    assert waits == [f"waiting for another process that works with the results in {store.folder}"]
    assert list(tmp_path.iterdir()) == [store.folder], "the first one made it, and was killed"


def test_a_lock_leaves_no_empty_folder(tmp_path: Path) -> None:
    """Even if the process that was waited for made the folder, and removed it at its end as a search does."""
    with ResultStore(tmp_path / "new" / "results", print).lock():
        pass
    assert list(tmp_path.iterdir()) == []
    notes, take_note = support.hold_until_waited_for(tmp_path / "made" / "results")

    def remove(note: str) -> None:
        shutil.rmtree(tmp_path / "made")
        take_note(note)

    with ResultStore(tmp_path / "made" / "results", remove).lock():
        assert len(notes) == 1
        assert (tmp_path / "made" / "results").is_dir()
    assert list(tmp_path.iterdir()) == []


def test_bundle_with_files_of_the_user_is_used_again_and_not_replaced(
    exported: ExportedBundle, tmp_path: Path, store: ResultStore, notes: list[str]
) -> None:
    options = CompileOptions(target="cpu", overwrite=True)
    output = tmp_path / "compiled"
    with store.lock():
        made, _ = obtain_compiled(exported, output, options, store, notes.append)
        (output / "notes.txt").write_text("of the user")
        again, reused = obtain_compiled(exported, output, options, store, notes.append)
        assert (again.digest, reused) == (made.digest, True)
        other = dataclasses.replace(options, batch_size=3)
        with pytest.raises(BundleExistsError, match=r"also holds 'notes\.txt'"):
            obtain_compiled(exported, output, other, store, notes.append)
    assert (output / "notes.txt").read_text() == "of the user"


def test_bundle_of_a_folder_that_cannot_be_written_is_used_again(
    exported: ExportedBundle, tmp_path: Path, store: ResultStore, notes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = CompileOptions(target="cpu", overwrite=True)
    made, _ = obtain_compiled(exported, tmp_path / "compiled", options, store, notes.append)
    # As on a read-only file system; permissions alone do not bind root.
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode & os.W_OK == 0)
    with store.lock():
        again, reused = obtain_compiled(exported, tmp_path / "compiled", options, store, notes.append)
    assert (again.digest, reused) == (made.digest, True)
    with pytest.raises(OutputError, match=r"Cannot write '.*other'"):
        obtain_compiled(exported, tmp_path / "other", options, store, notes.append)
