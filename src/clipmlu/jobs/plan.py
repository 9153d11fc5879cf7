"""Planning a job: its input is listed once, written piece by piece, and compared with the input of a stored job."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

import msgspec

from clipmlu.data.url.location import redact
from clipmlu.errors import InputError
from clipmlu.files.publish import output_errors
from clipmlu.jobs.manifest import InputPlan
from clipmlu.jobs.pieces import Part, Piece, RowsPiece, decode_piece


def write_plan(pieces: Iterable[Piece], path: Path, target: Path) -> InputPlan:
    """Write one line for each piece, as the pieces come.

    Args:
        pieces: the input.
        path: the file to write.
        target: its later name, for messages.

    Raises:
        InputError: there is no image, or none can be read; nothing was computed for it.
        OutputError: the file cannot be written.
    """
    digest, shards = hashlib.sha256(), 0
    images: int | None = 0
    reason: str | None = None
    readable = False
    with output_errors(target), io.FileIO(path, "w") as raw, io.BufferedWriter(raw) as stream:
        for piece in pieces:
            line = msgspec.json.encode(piece) + b"\n"
            stream.write(line)
            digest.update(line)
            shards += 1
            images = None if images is None or piece.images is None else images + piece.images
            reasons = [part.reason for part in piece.parts]
            readable = readable or None in reasons
            reason = reason or next(filter(None, reasons), None)
    if not readable:
        raise InputError(f"There are no images to read: {reason or 'the input is empty.'}")
    return InputPlan(digest=digest.hexdigest(), shards=shards, images=images)


def describe_other_input(stored: Path, wanted: Path, plans: tuple[InputPlan, InputPlan]) -> str | None:
    """Return how two inputs differ, in words; None if they hold the same images, cut into other pieces.

    Args:
        stored: ``inputs.jsonl`` of a job.
        wanted: the same file of the new input.
        plans: what was recorded of both.
    """
    counts = f"other inputs ({_counts(*plans)}"
    pairs = zip_longest(_parts(stored), _parts(wanted))
    try:
        first = next(((old, new) for old, new in pairs if old != new), None)
    except (OSError, msgspec.DecodeError):  # the stored list is missing or damaged
        return f"{counts})"
    if first is None:
        return None
    old, new = first
    if isinstance(old, RowsPiece) and isinstance(new, RowsPiece):
        moved = msgspec.structs.replace(old, current_folder=new.current_folder)
        if moved == new:
            return (
                f"another current folder, in which the rows of '{new.name}' look up relative paths: '{old.current_folder}' then, "
                f"'{new.current_folder}' now"
            )
    if old is not None and new is not None and old.name == new.name:
        return f"{counts}; the first that was changed: '{redact(new.name)}')"
    place = "the end" if old is None else f"'{redact(old.name)}'"
    now = "the end" if new is None else f"'{redact(new.name)}'"
    return f"{counts}; the first difference: {place} then, {now} now)"


def _parts(path: Path) -> Iterator[Part]:
    with path.open("rb") as stream:
        for line in stream:
            yield from decode_piece(line).parts


def _counts(then: InputPlan, now: InputPlan) -> str:
    if then.images is None or now.images is None:
        return f"{then.shards} shards then, {now.shards} now"
    return f"{then.images} images then, {now.images} now"
