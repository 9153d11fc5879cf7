"""Results on disk of a search, a sweep or a run, so that the same command resumes after an interruption.

Each result is one file with its key: digests of all inputs that determine the result, by name. A result is reused only
if the key is equal. Otherwise it is recomputed, and a note names the parts that differ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from clipmlu.errors import ClipmluError, OutputError, reason_of
from clipmlu.file_names import name_from_path
from clipmlu.files.folder_lock import lock_folder
from clipmlu.files.publish import encode_json, output_errors, write_file
from clipmlu.files.read import read_json
from clipmlu.keys import value_digest
from clipmlu.specs import Spec

Key = Mapping[str, str]
Note = Callable[[str], None]
Result = TypeVar("Result")
_SEAL = "seal"


class _Record(Spec, frozen=True, kw_only=True):
    """Content of one file.

    Attributes:
        key: digests of the inputs that determine the result.
        result: the result as a JSON value; None until it is complete.
    """

    key: dict[str, str]
    result: Any = None


class ResultStore:
    """Named results in one folder.

    Args:
        folder: folder of the results; created with the first result.
        on_note: called with the reason if a stored result is not used.
        on_result: called with the name of each result after it was written.
    """

    def __init__(
        self,
        folder: Path,
        on_note: Note,
        on_result: Callable[[str], None] = lambda _name: None,
    ) -> None:
        self.folder = folder
        self._on_note = on_note
        self._on_result = on_result

    def lock(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which no other process works with these results; waits for one that does, with a note."""
        folder = name_from_path(self.folder)
        return lock_folder(
            self.folder, lambda: self._on_note(f"waiting for another process that works with the results in {folder}")
        )

    def load(self, name: str, key: Key, kind: type[Result]) -> Result | None:
        """Return the result of that name, or None if none is stored under an equal key."""
        record = self._read(name)
        if record is None or not self._is_same(name, record, key) or record.result is None:
            return None
        try:
            return msgspec.convert(record.result, kind)
        except msgspec.ValidationError as error:
            self._refuse(name, str(error))
            return None

    def save(self, name: str, key: Key, result: object) -> None:
        """Write a result atomically and replace the record of the same name."""
        self._write(name, _Record(key=dict(key), result=msgspec.to_builtins(result)))
        self._on_result(name)

    def begin(self, name: str, key: Key) -> None:
        """Record that a result is being made; replaces the record of the same name."""
        self._write(name, _Record(key=dict(key)))

    @contextlib.contextmanager
    def making(self, name: str, key: Key) -> Iterator[None]:
        """Record that a result is being made in this block; an error of the block restores the record before it."""
        path = self._path(name)
        former = path.read_bytes() if path.is_file() else None
        self.begin(name, key)
        try:
            yield
        except ClipmluError:
            with contextlib.suppress(OSError, OutputError):
                if former is None:
                    path.unlink()
                else:
                    write_file(path, former, overwrite=True)
            raise

    def is_begun(self, name: str, key: Key) -> bool:
        """Return whether the result of that name and key was begun and is not complete."""
        record = self._read(name)
        return record is not None and record.result is None and self._is_same(name, record, key)

    def count(self) -> int:
        """Return the number of records."""
        return sum(1 for _path in self.folder.glob("*.json"))

    def clear(self) -> None:
        """Remove all records; other files of the folder stay."""
        with output_errors(self.folder):
            for path in self.folder.glob("*.json"):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _read(self, name: str) -> _Record | None:
        try:
            content = read_json(self._path(name), dict[str, Any])
            if content.pop(_SEAL, None) != value_digest(content):
                raise msgspec.DecodeError("its content was changed")
            return msgspec.convert(content, _Record)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            self._refuse(name, f"it is damaged or of another version: {reason_of(error)}")
            return None

    def _write(self, name: str, record: _Record) -> None:
        content = msgspec.to_builtins(record)
        sealed = {_SEAL: value_digest(content), **content}
        write_file(self._path(name), encode_json(sealed, indent=1), overwrite=True)

    def _is_same(self, name: str, record: _Record, key: Key) -> bool:
        differing = [part for part in {**record.key, **key} if record.key.get(part) != key.get(part)]
        if differing:
            self._refuse(name, f"it was made with other {', '.join(part.replace('_', ' ') for part in differing)}")
        return not differing

    def _refuse(self, name: str, reason: str) -> None:
        self._on_note(f"not reusing {name_from_path(self._path(name))}: {reason}")
