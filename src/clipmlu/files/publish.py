"""How results are published: made in a hidden folder beside their place and renamed into it when they are complete.

A path thus holds a whole file or directory, or what it held before. What is there is replaced only where that was asked for:
looked at before the slow work begins, and decided by the system again when the result gets its name.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from clipmlu.arguments import as_path
from clipmlu.errors import BundleExistsError, OutputError, OutputExistsError
from clipmlu.files.workspace import Workspace, place_directory, place_file, sweep

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_UNWRITABLE = (*_NO_ROOM, errno.EROFS, errno.EIO)


class StagedFiles:
    """Files of one folder that belong together, under construction; leaving the block removes what was not published.

    Args:
        targets: where they shall be.
        overwrite: replace what is there.

    Attributes:
        paths: where to write them until then, in the order of ``targets``.

    Raises:
        OutputExistsError: a target is taken.
        OutputError: the folder cannot be written.
    """

    def __init__(self, targets: Sequence[Path], *, overwrite: bool) -> None:
        self._targets = targets
        self._overwrite = overwrite
        for target in targets:
            check_file_free(target, overwrite=overwrite)
        with output_errors(targets[0]):
            parent = _staging_folder(targets[0])
            with contextlib.ExitStack() as stack:
                stack.enter_context(_folder_for_output(parent))
                self._workspace = Workspace(parent)
                self._folders = stack.pop_all()
        self.paths = [self._workspace.new(number) for number in range(len(targets))]

    def __enter__(self) -> StagedFiles:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()

    def discard(self) -> None:
        """Remove what was not published."""
        self._workspace.discard()
        self._folders.close()

    def publish(self, targets: Sequence[Path] | None = None) -> None:
        """Give the files their names, in their order: whoever finds the last one finds all of them, of one making.

        Args:
            targets: other names than those given first, in the same folder.

        Raises:
            OutputExistsError: a target was taken meanwhile.
            OutputError: a file cannot be put there.
        """
        targets = self._targets if targets is None else targets
        with output_errors(targets[0]):
            if any(map(_is_special, targets)):
                for path, target in zip(self.paths, targets, strict=True):
                    _copy_into(path, target)
            elif self._overwrite:
                self._workspace.replace(targets)
            else:
                self._place(targets)

    def _place(self, targets: Sequence[Path]) -> None:
        placed: list[Path] = []
        try:
            for path, target in zip(self.paths, targets, strict=True):
                place_file(path, target)
                placed.append(target)
        except FileExistsError as error:
            for mine in placed:
                mine.unlink()
            raise OutputExistsError(_taken_message("File", target)) from error


def write_file(path: str | os.PathLike[str], content: bytes, *, overwrite: bool) -> None:
    """Write a file whole or not at all; see ``write_files``."""
    write_files({as_path(path, "the output"): content}, overwrite=overwrite)


def write_files(contents: Mapping[Path, bytes], *, overwrite: bool) -> None:
    """Write files, each whole or not at all; those of one folder belong together, see ``StagedFiles.publish``.

    Args:
        contents: by path; folders are made.
        overwrite: replace what is there.

    Raises:
        OutputExistsError: one of the paths is taken.
        OutputError: one of them cannot be written.
    """
    check_files_free(contents, overwrite=overwrite)
    folders: dict[Path, list[Path]] = {}
    for target in contents:
        folders.setdefault(target.parent, []).append(target)
    with contextlib.ExitStack() as stack:
        staged = []
        for targets in folders.values():
            group = stack.enter_context(StagedFiles(targets, overwrite=overwrite))
            for path, target in zip(group.paths, targets, strict=True):
                with output_errors(target):
                    path.write_bytes(contents[target])
            staged.append(group)
        for group in staged:
            group.publish()


@contextlib.contextmanager
def stage_directory(target: Path, kind: str, marker: str, *, overwrite: bool = False) -> Iterator[Path]:
    """Fill a hidden folder beside ``target`` and rename it into place when the block ends.

    On any exception, an interrupt included, the folder is removed and ``target`` is as it was.

    Args:
        target: where the directory shall be.
        kind: what it is, for messages.
        marker: the file by which one of that kind is known; anything without it is never replaced.
        overwrite: replace one of that kind that is there already.

    Raises:
        BundleExistsError: ``target`` is taken.
        OutputError: the directory cannot be written, for instance because the disk is full.
    """
    check_directory_free(target, kind, marker, overwrite=overwrite)
    with contextlib.ExitStack() as stack:
        with output_errors(target):
            stack.enter_context(_folder_for_output(target.parent))
            workspace = stack.enter_context(Workspace(target.parent))
        with output_errors(target):
            workspace.new().mkdir()
        with disk_full_errors(target):
            yield workspace.new()
        with output_errors(target):
            _put_directory(workspace, target, kind, marker, overwrite=overwrite)


def _put_directory(workspace: Workspace, target: Path, kind: str, marker: str, *, overwrite: bool) -> None:
    try:
        place_directory(workspace.new(), target)
    except FileExistsError:
        # Somebody may have been faster than this one: looked at again.
        check_directory_free(target, kind, marker, overwrite=overwrite)
        workspace.replace([target])


def check_directory_free(target: Path, kind: str, marker: str, *, overwrite: bool) -> None:
    """Refuse an output path that is taken or cannot be written, before anything slow begins; see ``stage_directory``.

    Raises:
        BundleExistsError: something is there that may not be replaced.
        OutputError: nothing can be written there.
    """
    sweep(target.parent)
    with output_errors(target):
        _check_parent(target)
        if not _exists(target) or (target.is_dir() and not any(target.iterdir())):
            return
    if not (target / marker).is_file():
        raise BundleExistsError(f"Output '{target}' exists and is not a {kind}; it is left alone. Choose another path.")
    if not overwrite:
        raise BundleExistsError(_taken_message(kind.capitalize(), target))


def check_files_free(targets: Iterable[Path | None], *, overwrite: bool) -> None:
    """``check_file_free`` for several, of which None are left out, and no two may be the same."""
    given = [target for target in targets if target is not None]
    for number, target in enumerate(given):
        check_file_free(target, overwrite=overwrite)
        if any(os.path.abspath(target) == os.path.abspath(other) for other in given[:number]):
            raise OutputError(f"Two outputs are to be written to '{target}'. Give each a name of its own.")


def check_file_free(target: Path, *, overwrite: bool) -> None:
    """Refuse an output file that is taken or cannot be written, before anything slow begins.

    A device or a pipe is never taken: it is written into.

    Raises:
        OutputExistsError: there is a file, and it may not be replaced.
        OutputError: nothing can be written there.
    """
    with output_errors(target):
        if _is_special(target):
            return
        sweep(target.parent)
        _check_parent(target)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        taken = _exists(target)
    if taken and not overwrite:
        raise OutputExistsError(_taken_message("File", target))


@contextlib.contextmanager
def _folder_for_output(folder: Path) -> Iterator[None]:
    """Make a folder and those above it that are missing; of these, what is empty when the block ends is removed again."""
    missing = [each for each in (folder, *folder.parents) if not _exists(each)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        for each in missing:  # the innermost first
            with contextlib.suppress(OSError):  # it holds what was written
                each.rmdir()


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A folder for intermediate files, in the system's folder for those; removed in the end, or by the next one's owner.

    Raises:
        OutputError: it cannot be made, or it is full.
    """
    root = Path(tempfile.gettempdir())
    with output_errors(root):
        workspace = Workspace(root)
    with workspace, disk_full_errors(root):
        workspace.new().mkdir()
        yield workspace.new()


@contextlib.contextmanager
def output_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear ``OutputError`` that names ``target``."""
    try:
        yield
    except OSError as error:
        raise OutputError(_refusal(target, error)) from error


@contextlib.contextmanager
def disk_full_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turn a full or unwritable disk into one clear ``OutputError`` around code that may fail for many other reasons."""
    try:
        yield
    except OSError as error:
        if error.errno in _UNWRITABLE:
            raise OutputError(_refusal(target, error)) from error
        raise


def _refusal(target: str | os.PathLike[str], error: OSError) -> str:
    if error.errno in _NO_ROOM and error.errno != errno.EFBIG:
        return f"No space left on the disk of '{target}'; nothing was written. Free some and run again."
    if error.errno == errno.EFBIG:
        return f"'{target}' is larger than files may be here; nothing was written. See 'ulimit -f'."
    return f"Cannot write '{target}': {error.strerror or error}. Choose a path that can be written."


def _taken_message(kind: str, target: Path) -> str:
    return f"{kind} '{target}' exists. Choose another path, or replace it with --overwrite."


def _exists(path: Path) -> bool:
    """Whether anything is there, a dangling link too.

    Raises:
        OSError: that cannot be known, such as for a name that is too long.
    """
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _check_parent(target: Path) -> None:
    """Refuse a place whose nearest existing folder is none, or takes no new entries.

    Raises:
        OSError: why.
    """
    folder = Path(os.path.abspath(target)).parent
    while not _exists(folder):
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"'{folder}' is no directory")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"'{folder}' does not let you write")


def _is_special(target: Path) -> bool:
    """Whether there is a device, a pipe or the like, which is written into and not replaced."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _staging_folder(target: Path) -> Path:
    """The target's own folder; another one where nothing is renamed into place."""
    return Path(tempfile.gettempdir()) if _is_special(target) else target.parent


def _copy_into(path: Path, target: Path) -> None:
    with path.open("rb") as source, target.open("wb") as sink:
        shutil.copyfileobj(source, sink)


def encode_json(value: object, indent: int = 2) -> bytes:
    """A report, record or list as indented JSON, with a line feed at the end.

    Raises:
        OutputError: it holds NaN or infinity, which JSON does not have and msgspec would write as null.
    """
    place = _find_no_number(msgspec.to_builtins(value), "")
    if place is not None:
        raise OutputError(
            f"The result cannot be written as JSON: '{place[0]}' is {place[1]}, which is no number there."
        )
    return msgspec.json.format(msgspec.json.encode(value), indent=indent) + b"\n"


def _find_no_number(value: object, place: str) -> tuple[str, float] | None:
    """Where a float is that is not finite, and which; None where there is none."""
    if isinstance(value, float):
        return None if math.isfinite(value) else (place, value)
    children: Iterable[tuple[str, object]] = ()
    if isinstance(value, dict):
        children = ((f"{place}.{key}" if place else str(key), child) for key, child in value.items())
    elif isinstance(value, (list, tuple)):
        children = ((f"{place}[{index}]", child) for index, child in enumerate(value))
    return next((found for name, child in children if (found := _find_no_number(child, name)) is not None), None)
