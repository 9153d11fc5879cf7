"""Verifying a job: every file of every finished shard against its record, and the record against the input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec

from clipmlu.bundle.directory import open_bundle
from clipmlu.display import Displayed
from clipmlu.errors import InputError, reason_of
from clipmlu.files.publish import output_errors
from clipmlu.files.read import read_json
from clipmlu.jobs.folder import INPUTS_FILE, JobFolder, ShardRecord
from clipmlu.jobs.manifest import JobManifest
from clipmlu.jobs.pieces import FilesPiece, Piece, Shard, shard_name
from clipmlu.jobs.reading import check_digests, read_shard
from clipmlu.specs import NaturalInt, Spec


class Damage(Spec, frozen=True, kw_only=True):
    """Something of a job that is not as it was written.

    Attributes:
        shard: name of the shard; None if it is about the whole job.
        reason: what is wrong.
    """

    shard: str | None
    reason: str


class JobCheck(Displayed, Spec, frozen=True, kw_only=True):
    """The result of verifying a job.

    Attributes:
        path: folder of the job.
        shards: number of shards of the job.
        checked_shards: the finished ones, all of which were read.
        rows: rows of those that are intact.
        bundle_checked: whether a bundle was compared with the job's.
        damages: what is wrong; empty if all is well.
        repaired: the damaged shards were marked as not done.
    """

    path: str
    shards: NaturalInt
    checked_shards: NaturalInt
    rows: NaturalInt
    bundle_checked: bool
    damages: tuple[Damage, ...]
    repaired: bool = False


def verify_job(
    folder: JobFolder,
    manifest: JobManifest,
    *,
    bundle: Path | None = None,
    on_shard: Callable[[str], object] = lambda _name: None,
) -> JobCheck:
    """Compare all finished shards with their records and with the input.

    Args:
        folder: the job.
        manifest: its manifest.
        bundle: a bundle that must be the job's; None to compare none.
        on_shard: called with the name of each shard of the job after it was checked or found not to be done.

    Raises:
        BundleError: the bundle is damaged.
    """
    damages = [] if bundle is None else list(_other_bundle(manifest, bundle))
    damages += _changed_classifier(folder, manifest)
    shards = _read_input(folder, manifest)
    if shards is None:
        reason = f"'{INPUTS_FILE}' is missing or changed; the images of the shards were not compared with it. The command of the job writes it again."
        damages.append(Damage(shard=None, reason=reason))
        shards = iter(())
    checked = rows = 0
    for number in range(manifest.shards):
        try:
            found = _check_shard(folder, manifest, number, next(shards, None))
            checked += found is not None
            rows += found or 0
        except InputError as error:
            checked += 1
            damages.append(Damage(shard=shard_name(number), reason=str(error)))
        on_shard(shard_name(number))
    return JobCheck(
        path=folder.name,
        shards=manifest.shards,
        checked_shards=checked,
        rows=rows,
        bundle_checked=bundle is not None,
        damages=tuple(damages),
    )


def forget_damaged(folder: JobFolder, check: JobCheck) -> JobCheck:
    """Remove the records of the damaged shards, so that the job's command computes them again; their files stay until then.

    Raises:
        OutputError: a record cannot be removed.
    """
    names = {damage.shard for damage in check.damages}
    for number in range(check.shards):
        if shard_name(number) in names:
            path = folder.record_path(number)
            with output_errors(path):
                if path.is_dir():  # not ours, and only removed if it is empty
                    path.rmdir()
                else:
                    path.unlink(missing_ok=True)
    return msgspec.structs.replace(check, repaired=True)


def _other_bundle(manifest: JobManifest, bundle: Path) -> Iterator[Damage]:
    found, expected = open_bundle(bundle).digest, manifest.provenance.bundle_digest
    if found != expected:
        yield Damage(
            shard=None,
            reason=f"bundle '{bundle}' has the digest {found[:12]}; the job was computed with another, {expected[:12]}",
        )


def _changed_classifier(folder: JobFolder, manifest: JobManifest) -> Iterator[Damage]:
    if manifest.classifier_sha256 is not None:
        try:
            folder.check_classifier(manifest)
        except InputError as error:
            yield Damage(shard=None, reason=str(error))


def _read_input(folder: JobFolder, manifest: JobManifest) -> Iterator[Shard] | None:
    """Return the pieces of the input; None if they are not those of the manifest."""
    try:
        with folder.inputs_path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None
    return folder.shards() if digest == manifest.inputs.digest else None


def _check_shard(folder: JobFolder, manifest: JobManifest, number: int, shard: Shard | None) -> int | None:
    """Return the number of rows of an intact shard; None if it is not done.

    Raises:
        InputError: it is damaged.
    """
    path = folder.record_path(number)
    try:
        record = read_json(path, ShardRecord)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise InputError(f"Cannot read '{path}': {reason_of(error)}.") from error
    if record.number != number or (shard is not None and record.piece_digest != shard.digest):
        raise InputError(f"'{path}' is the record of another piece of the input.")
    check_digests(folder, manifest, record)
    rows = read_shard(folder, manifest, record)
    if shard is not None and not _are_of(shard.piece, rows.ids):
        raise InputError(f"The rows of '{shard.name}' are not those of its images.")
    return len(rows.ids)


def _are_of(piece: Piece, ids: Sequence[str]) -> bool:
    """Return whether the rows are those of the images of a piece, as far as it can tell without being opened."""
    if isinstance(piece, FilesPiece):
        return [entry.name for entry in piece.files] == list(ids)
    return piece.images is None or piece.images == len(ids)
