"""Embedding files: a NumPy file and the ids of its rows, written incrementally and published together."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from clipmlu.data.textfile import read_lines
from clipmlu.embed.images import embed_batches
from clipmlu.embed.items import ImageItem
from clipmlu.errors import InputError, OptionError
from clipmlu.files.publish import StagedFiles, check_files_free, output_errors
from clipmlu.steps import StartStep, no_steps

if TYPE_CHECKING:
    from clipmlu.embed.encoder import Encoder

SUFFIX = ".npy"
_TEXTS_AT_ONCE = 1024
_HEADER_BYTES = 128  # of the .npy format with two axes, which np.lib.format pads to this


def check_embedding_output(path: Path, *, overwrite: bool) -> None:
    """Check, before slow work begins, that ``EmbeddingFile`` can write to a path.

    Raises:
        OptionError: the suffix is not ``.npy``.
        OutputExistsError: embeddings or ids already exist, and overwriting was not requested.
        OutputError: the path cannot be written.
    """
    if path.suffix != SUFFIX:
        raise OptionError(f"output is '{path}'; expected a name that ends in {SUFFIX}, the only format of embeddings")
    check_files_free(_targets(path), overwrite=overwrite)


def _targets(path: Path) -> list[Path]:
    """Return the files of the rows and of their ids."""
    return [path, path.with_suffix(".ids.json")]


class EmbeddingFile:
    """Writes ``NAME.npy`` (shape (N, D)) and ``NAME.ids.json`` (a list of N strings) incrementally.

    The files are invisible until ``publish``; leaving the block removes unpublished ones. The ids are published last,
    and removed first when both are replaced: so existing ids always belong to the rows beside them.

    Args:
        path: ``NAME.npy``.
        embedding_dim: D.
        dtype: dtype of the file.
        overwrite: replace existing files.

    Attributes:
        rows: number of rows written so far.

    Raises:
        OptionError, OutputExistsError, OutputError: as for ``check_embedding_output``.
    """

    def __init__(self, path: Path, embedding_dim: int, *, dtype: str = "float32", overwrite: bool = False) -> None:
        check_embedding_output(path, overwrite=overwrite)
        self._path = path
        self._overwrite = overwrite
        self._dim = embedding_dim
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self.rows = 0
        self._staged = StagedFiles(_targets(path), overwrite=overwrite)
        try:
            with output_errors(path):
                # Unbuffered, so that a full disk raises at the write.
                self._array, self._ids = (io.FileIO(staged, "w") for staged in self._staged.paths)
                _write_all(self._array, bytes(_HEADER_BYTES))
                _write_all(self._ids, b"[")
        except BaseException:
            self._staged.discard()
            raise
        self._ends = (_HEADER_BYTES, 1)

    def __enter__(self) -> EmbeddingFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._array.close()
        self._ids.close()
        self._staged.discard()

    def append(self, embeddings: npt.NDArray[np.floating], ids: Sequence[str]) -> None:
        """Write rows, all or none.

        Args:
            embeddings: float32 or float16, shape (N, D).
            ids: one per row.

        Raises:
            OutputError: the rows cannot be written, for instance because the disk is full.
        """
        lines = [f"\n{json.dumps(name, ensure_ascii=False)}".encode() for name in ids]
        with output_errors(self._path):
            self._seek_to_end()
            _write_all(self._array, np.ascontiguousarray(embeddings, self._dtype).tobytes())
            _write_all(self._ids, (b"," if self.rows and ids else b"") + b",".join(lines))
            self._ends = (self._array.tell(), self._ids.tell())
            self.rows += len(ids)

    def publish(self, *, partial: bool = False) -> Path:
        """Rename both files to their final paths, and return the first.

        Args:
            partial: publish as ``NAME.partial.npy``, which replaces no complete file; if an earlier interrupted run
                left that and ``overwrite`` is False, as ``NAME.partial-2.npy``, and so on.

        Raises:
            OutputExistsError: a file of that name was created meanwhile.
            OutputError: a file cannot be written.
        """
        path = self._partial_path() if partial else self._path
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(
            header, {"descr": self._dtype.str, "fortran_order": False, "shape": (self.rows, self._dim)}
        )
        assert len(header.getvalue()) == _HEADER_BYTES
        with output_errors(path):
            self._seek_to_end()
            _write_all(self._ids, b"\n]\n")
            self._array.seek(0)
            _write_all(self._array, header.getvalue())
            self._array.close()
            self._ids.close()
        self._staged.publish(_targets(path))
        return path

    def _partial_path(self) -> Path:
        """Return ``NAME.partial.npy``, or ``NAME.partial-2.npy`` and so on if it exists and must not be replaced."""
        endings = itertools.chain(("",), (f"-{number}" for number in itertools.count(2)))
        paths = (self._path.with_suffix(f".partial{ending}{SUFFIX}") for ending in endings)
        return next(path for path in paths if self._overwrite or not any(map(os.path.lexists, _targets(path))))

    def _seek_to_end(self) -> None:
        """Remove the rest of an append that failed."""
        for stream, end in zip((self._array, self._ids), self._ends, strict=True):
            stream.seek(end)
            stream.truncate()


def _write_all(stream: io.FileIO, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[stream.write(rest) :]


def embed_images_into(
    file: EmbeddingFile,
    encoder: Encoder,
    items: Iterable[ImageItem],
    *,
    batch_size: int | None,
    workers: int | None,
    on_skipped: Callable[[InputError], object],
    on_images: Callable[[int], object] = lambda _count: None,
) -> int:
    """Embed images and append their rows, batch by batch.

    Args:
        file: where to.
        encoder: what embeds them.
        items: the images.
        batch_size: images per batch; None for the bundle's own.
        workers: threads that read, decode and preprocess; None for all CPUs.
        on_skipped: called with the error of each image that cannot be read.
        on_images: called with the number of images of each batch when it is done.

    Returns:
        Number of images that could not be read.
    """
    broken = 0
    with contextlib.closing(embed_batches(encoder, items, batch_size=batch_size, workers=workers)) as batches:
        for batch in batches:
            file.append(batch.rows, [item.id for item in batch.computed()])
            broken += len(batch.errors)
            on_images(len(batch.items))
            for error in batch.errors.values():
                on_skipped(error)
    return broken


def embed_lines_into(
    file: EmbeddingFile,
    encoder: Encoder,
    path: Path,
    *,
    on_note: Callable[[str], None],
    on_step: StartStep = no_steps,
) -> None:
    """Embed the lines of a text file and append their rows; a line is its own id.

    Args:
        file: where to.
        encoder: what embeds them.
        path: the text file.
        on_note: called with a line for people, such as about blank lines.
        on_step: shows the lines.

    Raises:
        InputError: the file cannot be read, or holds no text.
    """
    lines = read_lines(path, "text file", on_note)
    if not lines:
        raise InputError(f"The text file '{path}' holds no text. Expected one text a line.")
    with on_step("embedding texts", total=len(lines), unit="texts") as step:
        for start in range(0, len(lines), _TEXTS_AT_ONCE):
            part = lines[start : start + _TEXTS_AT_ONCE]
            file.append(encoder.embed_texts(part, on_rows=step.advance), part)
