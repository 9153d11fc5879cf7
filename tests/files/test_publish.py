"""Publishing: whole or not at all, nothing replaced unasked, nothing left behind, one clear line where it cannot be done."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clipmlu.errors import BundleExistsError, OutputError, OutputExistsError
from clipmlu.files import workspace
from clipmlu.files.publish import (
    DirectoryKind,
    StagedFiles,
    check_file_free,
    check_files_free,
    scratch_directory,
    stage_directory,
    write_file,
    write_files,
)
from clipmlu.files.workspace import Workspace, sweep

KIND = DirectoryKind(name="bundle", marker="marker", files=("data",))
KILLING = Path(__file__).with_name("killing.py")


def _make_directory(target: Path, *, overwrite: bool = False, content: str = "new") -> None:
    with stage_directory(target, KIND, overwrite=overwrite) as folder:
        (folder / "marker").write_text(content)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("case", ["one", "pair", "directory", "without_exchange"])
def test_kill_at_any_step_leaves_one_making_and_no_rubbish(tmp_path: Path, case: str) -> None:
    command = [sys.executable, str(KILLING), case, str(tmp_path / "out")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    steps = json.loads(result.stdout)
    assert len(steps) > 10
    for before, after, left in steps:
        assert left == 0
        assert len(after) == (1 if case == "one" else 2)
        assert set(after.values()) in ({"old"}, {"new"})
        # In the instant of the kill something may be missing, which is seen; old and new ones never stand together.
        assert len(set(before.values())) <= 1
        assert case != "pair" or "ids" not in before or "rows" in before, "whoever finds the last one finds all"
        if case in ("one", "directory"):
            assert before == after
    assert set(steps[0][1].values()) == {"old"}
    assert set(steps[-1][1].values()) == {"new"}


def test_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.json"
    write_file(path, b"old", overwrite=False)

    def fail(self: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OutputError, match="No space left"):
        write_file(path, b"new", overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_that_belong_together_are_written_all_or_none(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputError, match=r"Cannot write '.*taken': it is a directory"):
        write_files({tmp_path / "first": b"1", tmp_path / "taken": b"2"}, overwrite=True)
    assert _names(tmp_path) == ["taken"]
    write_files({tmp_path / "first": b"1", tmp_path / "sub" / "second": b"2"}, overwrite=False)
    assert (tmp_path / "sub" / "second").read_bytes() == b"2"
    assert _names(tmp_path) == ["first", "sub", "taken"]


def test_file_that_is_there_is_kept_unless_overwriting_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(b"old")
    with pytest.raises(OutputExistsError, match=r"File '.*report\.json' exists\. .*--overwrite"):
        write_files({tmp_path / "other": b"1", path: b"new"}, overwrite=False)
    assert (_names(tmp_path), path.read_bytes()) == (["report.json"], b"old")
    write_file(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"


def test_dangling_link_is_something_that_is_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError):
        write_file(tmp_path / "link", b"new", overwrite=False)
    assert not (tmp_path / "nowhere").exists()


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"Two outputs are to be written to '.*a'"):
        check_files_free([tmp_path / "a", None, tmp_path / "sub" / ".." / "a"], overwrite=True)


def _race(publish: Callable[[int], None], count: int) -> list[BaseException | None]:
    """What each of several threads got, that pass the first look all at once."""
    barrier = threading.Barrier(count)
    outcomes: list[BaseException | None] = [None] * count

    def attempt(number: int) -> None:
        barrier.wait()
        try:
            publish(number)
        except OutputError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=attempt, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_of_many_at_once_one_gets_the_name(tmp_path: Path) -> None:
    barrier = threading.Barrier(20)

    def publish(number: int) -> None:
        with stage_directory(tmp_path / "same", KIND) as folder:
            (folder / "marker").write_text(str(number))
            barrier.wait()  # all have looked, and found the place free

    outcomes = _race(publish, 20)
    winners = [number for number, outcome in enumerate(outcomes) if outcome is None]
    assert len(winners) == 1
    assert all(isinstance(outcome, BundleExistsError) for outcome in outcomes if outcome is not None)
    assert (tmp_path / "same" / "marker").read_text() == str(winners[0])
    assert _names(tmp_path) == ["same"]


def test_of_many_files_at_once_one_gets_the_name(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def publish(number: int) -> None:
        with Workspace(tmp_path) as space:
            space.new().write_text(str(number))
            barrier.wait()
            try:
                workspace.place_file(space.new(), tmp_path / "same")
            except FileExistsError as error:
                raise OutputExistsError("taken") from error

    outcomes = _race(publish, 8)
    winners = [number for number, outcome in enumerate(outcomes) if outcome is None]
    assert len(winners) == 1
    assert (tmp_path / "same").read_text() == str(winners[0])
    assert _names(tmp_path) == ["same"]


def test_file_system_without_links_still_replaces_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "a", b"1", overwrite=False)
    (tmp_path / "b").write_bytes(b"old")
    with Workspace(tmp_path) as space:
        space.new().write_bytes(b"new")
        with pytest.raises(FileExistsError):
            workspace.place_file(space.new(), tmp_path / "b")
    assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (b"1", b"old")


def test_directory_is_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="it is a directory"):
        write_file(tmp_path, b"x", overwrite=True)


def test_directory_that_is_a_mount_point_is_found_before_the_work() -> None:
    with (
        pytest.raises(OutputError, match=r"'/proc': it is a mount point, .* Give a folder in it"),
        stage_directory(Path("/proc"), KIND, overwrite=True),
    ):
        raise AssertionError("the work has begun")


def test_directory_that_is_taken_is_found_before_the_work(tmp_path: Path) -> None:
    _make_directory(tmp_path / "taken")
    with (
        pytest.raises(BundleExistsError, match="--overwrite"),
        stage_directory(tmp_path / "taken", KIND),
    ):
        pytest.fail("the work has begun")


@pytest.mark.parametrize(
    ("others", "named"),
    [
        (("notes.txt",), r"'notes\.txt', which clipmlu did not write there; it is not changed\. Move it away"),
        (("data/report.html",), r"'data/report\.html', which"),
        (("a", "marker.bak"), r"'a' and 'marker\.bak', which .* Move them away"),
        (("a", "b", "c/d"), r"'a' and 2 other files, which"),
    ],
)
def test_directory_with_files_of_somebody_else_is_kept_as_it_is(
    tmp_path: Path, others: tuple[str, ...], named: str
) -> None:
    _make_directory(tmp_path / "out", content="old")
    for name in others:
        path = tmp_path / "out" / name
        path.parent.mkdir(exist_ok=True)
        path.symlink_to("nowhere") if name == "a" else path.write_text("mine")
    before = sorted((tmp_path / "out").rglob("*"))
    with (
        pytest.raises(BundleExistsError, match=named) as caught,
        stage_directory(tmp_path / "out", KIND, overwrite=True),
    ):
        pytest.fail("the work has begun")
    assert "\n" not in str(caught.value)
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_file_that_is_written_during_the_work_is_kept(tmp_path: Path) -> None:
    _make_directory(tmp_path / "out", content="old")

    def replace() -> None:
        with stage_directory(tmp_path / "out", KIND, overwrite=True) as folder:
            (folder / "marker").write_text("new")
            (tmp_path / "out" / "late").write_text("mine")

    with pytest.raises(BundleExistsError, match=r"also holds 'late'"):
        replace()
    assert ((tmp_path / "out" / "marker").read_text(), (tmp_path / "out" / "late").read_text()) == ("old", "mine")
    assert _names(tmp_path) == ["out"]


_OTHER_MARKERS = (
    *("{", "[]", '{"files": 3}', '{"name": "a web page"}', '{"files": {}}', '{"files": {"data.bin": 1}}'),
    *('{"schema_version": 1, "files": {"data.bin": "/static/data.bin"}}', '{"files": {"data.bin": {"size": 3}}}'),
)


@pytest.mark.parametrize("content", _OTHER_MARKERS)
def test_directory_of_another_program_with_the_same_marker_is_kept(tmp_path: Path, content: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data.bin").write_text("of another program")
    (tmp_path / "out" / "manifest.json").write_text(content)
    with (
        pytest.raises(BundleExistsError, match=r"manifest\.json' does not say which files belong to the bundle"),
        stage_directory(tmp_path / "out", DirectoryKind(name="bundle", marker="manifest.json"), overwrite=True),
    ):
        pytest.fail("the work has begun")
    assert (tmp_path / "out" / "manifest.json").read_text() == content


def test_link_to_a_directory_is_replaced_and_what_it_leads_to_is_kept(tmp_path: Path) -> None:
    _make_directory(tmp_path / "real", content="old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    _make_directory(tmp_path / "link", overwrite=True)
    assert not (tmp_path / "link").is_symlink()
    assert ((tmp_path / "link" / "marker").read_text(), (tmp_path / "real" / "marker").read_text()) == ("new", "old")
    assert _names(tmp_path) == ["link", "real"]


def test_living_owner_is_left_alone(tmp_path: Path) -> None:
    with Workspace(tmp_path) as space:
        space.new().write_text("half")
        sweep(tmp_path)
        assert space.new().read_text() == "half"
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"lock": ""},
        {"lock": "", "new-0": "half"},
        {"lock": "", "new-0": "whole", "targets.json": ""},
        {"lock": "", "targets.json": '["placed-and-removed-since"]'},
    ],
)
def test_dead_owner_is_swept_up_by_whoever_writes_next(tmp_path: Path, content: dict[str, str]) -> None:
    dead = tmp_path / ".clipmlu-0123456789abcdef.tmp"
    dead.mkdir()
    for name, text in content.items():
        (dead / name).write_text(text)
    write_file(tmp_path / "a", b"1", overwrite=False)
    assert _names(tmp_path) == ["a"]


def test_what_a_kill_moved_aside_is_back_before_its_place_is_taken_for_free(tmp_path: Path) -> None:
    dead = tmp_path / ".clipmlu-0123456789abcdef.tmp"
    dead.mkdir()
    for name, text in {"lock": "", "targets.json": '["a"]', "old-0": "old", "new-0": "new"}.items():
        (dead / name).write_text(text)
    with pytest.raises(OutputExistsError):
        check_file_free(tmp_path / "a", overwrite=False)
    assert ((tmp_path / "a").read_text(), _names(tmp_path)) == ("new", ["a"])


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_file_system_without_locks_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    write_file(tmp_path / "a", b"1", overwrite=False)
    assert _names(tmp_path) == ["a"]


def test_lock_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OutputError, match="Input/output error"):
        write_file(tmp_path / "a", b"1", overwrite=False)


def test_what_another_host_makes_is_left_alone_for_a_day(tmp_path: Path) -> None:
    other = tmp_path / ".clipmlu-0123456789abcdef.tmp"
    other.mkdir()
    (other / "lock").write_text("another-host")
    sweep(tmp_path)
    assert other.is_dir()
    os.utime(other, (0, 0))
    sweep(tmp_path)
    assert not other.exists()


@pytest.mark.parametrize(
    ("name", "files"),
    [
        (".clipmlu-0123456789abcdef.tmp", ("precious",)),
        ("editor.tmp", ("precious", "lock")),
        (".clipmlu-settings", ("precious", "lock")),
    ],
)
def test_what_somebody_else_put_there_is_left_alone(tmp_path: Path, name: str, files: tuple[str, ...]) -> None:
    stray = tmp_path / name
    stray.mkdir()
    for file in files:
        (stray / file).write_text("x" if file == "precious" else "")
    sweep(tmp_path)
    assert (stray / "precious").read_text() == "x"


def test_link_and_folder_of_another_user_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, parent = tmp_path / "real", tmp_path / "parent"
    real.mkdir()
    (real / "lock").touch()
    (parent / ".clipmlu-0123456789abcdef.tmp").mkdir(parents=True)
    (parent / ".clipmlu-0123456789abcdef.tmp" / "lock").touch()
    (parent / ".clipmlu-fedcba9876543210.tmp").symlink_to(real)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 12345)
        sweep(parent)
        assert len(_names(parent)) == 2
    sweep(parent)
    assert (_names(parent), _names(real)) == ([".clipmlu-fedcba9876543210.tmp"], ["lock"])


def test_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    write_file(tmp_path / ("f" * 255), b"x", overwrite=False)
    _make_directory(tmp_path / ("d" * 255))
    _make_directory(tmp_path / ("d" * 255), overwrite=True)
    assert _names(tmp_path) == ["d" * 255, "f" * 255]
    with pytest.raises(OutputError, match="File name too long"):
        check_file_free(tmp_path / ("f" * 256), overwrite=False)


def test_parent_that_is_a_file_is_found_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for target in (tmp_path / "file" / "new", tmp_path / "file" / "sub" / "new"):
        with pytest.raises(OutputError, match=r"Cannot write '.*new'"):
            check_file_free(target, overwrite=False)


def test_device_is_written_into(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    write_file("/dev/null", b"x", overwrite=False)
    assert not Path("/dev/null").is_file()
    with pytest.raises(OutputError, match="No space left on the disk of '/dev/full'"):
        write_file("/dev/full", b"x", overwrite=False)


def test_pipe_is_written_into(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    write_file(tmp_path / "pipe", b"content", overwrite=False)
    reader.join()
    assert read == [b"content"]
    assert (tmp_path / "pipe").is_fifo()


def test_larger_than_files_may_be_is_one_clear_error(tmp_path: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from clipmlu.files.publish import write_file\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "write_file(Path(sys.argv[1]), bytes(10_000), overwrite=False)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "big")], capture_output=True, text=True, check=False
    )
    assert "OutputError: " in result.stderr.splitlines()[-1]
    assert "is larger than the file size limit" in result.stderr.splitlines()[-1]
    assert _names(tmp_path) == []


@pytest.fixture
def refusing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose file system turns read-only while something is being made in it."""

    def refuse(*_arguments: object, **_named: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        for name in ("unlink", "rmdir", "rename", "replace", "link"):
            patch.setattr(os, name, refuse)
        yield tmp_path


def test_clean_up_that_fails_too_hides_nothing(refusing: Path) -> None:
    with pytest.raises(OutputError, match="Read-only file system") as caught:
        write_file(refusing / "a", b"x", overwrite=False)
    assert str(caught.value).count("\n") == 0
    with pytest.raises(OutputError, match="Read-only file system"):
        _make_directory(refusing / "b")


def test_error_of_the_work_is_not_hidden_by_the_clean_up(refusing: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), stage_directory(refusing / "a", KIND):
        raise RuntimeError("boom")


def test_scratch_is_gone_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_directory() as folder:
        assert _names(folder) == []
        (folder / "half").write_text("x")
    assert _names(tmp_path) == []


def test_scratch_without_a_temporary_folder_is_an_error_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    with (
        pytest.raises(OutputError, match=r"Cannot write temporary files: No usable .* Set TMPDIR"),
        scratch_directory(),
    ):
        pytest.fail("there is no folder")


def test_folders_that_were_made_for_files_go_when_nothing_is_written(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ZeroDivisionError), StagedFiles([tmp_path / "a" / "b" / "x"], overwrite=False):
            raise ZeroDivisionError
        assert list(tmp_path.iterdir()) == []
    with StagedFiles([tmp_path / "a" / "b" / "x"], overwrite=False) as staged:
        staged.paths[0].write_bytes(b"x")
        staged.publish()
    assert (tmp_path / "a" / "b" / "x").read_bytes() == b"x"


def test_folders_that_were_made_for_a_directory_go_when_it_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    for parent in ("a/b", "mine"):
        with pytest.raises(ZeroDivisionError), stage_directory(tmp_path / parent / "out", KIND):
            raise ZeroDivisionError
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    with stage_directory(tmp_path / "a" / "b" / "out", KIND) as folder:
        (folder / "m").write_bytes(b"m")
    assert (tmp_path / "a" / "b" / "out" / "m").read_bytes() == b"m"
