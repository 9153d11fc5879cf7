"""Classifier files: class embeddings with their origin, as a NumPy archive that is fully checked on reading.

The file is written by ``numpy.savez`` and holds two arrays: ``header``, bytes of JSON, and ``class_embeddings``,
float32, (C, D). All sizes are checked before arrays are read, so that a small file cannot expand to a large array.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from clipmlu.classify.open_set import OpenSet
from clipmlu.errors import InputError, reason_of
from clipmlu.files.read import SMALL_FILE_BYTES, decode_json, open_regular
from clipmlu.specs import LogitBias, LogitScale, ModelId, Spec

if TYPE_CHECKING:
    from clipmlu.embed.rows import FloatArray

CLASSIFIER_SCHEMA = 2
_WITH_TEMPLATES = 1  # files without an open set and own prompts have the schema of earlier versions, which read them
_MOST_BYTES = 1 << 30
_ENCRYPTED = 1  # flag of an archive member
_NORM_SLACK = 1e-3


class ClassifierHeader(Spec, frozen=True, kw_only=True):
    """The header of a classifier file.

    Attributes:
        schema_version: version of the file's layout.
        text_id: digest of the text tower that computed the embeddings; see ``Manifest.text_id``.
        model: the model, for display.
        class_names: one per row of the embeddings; the rows of the background classes follow.
        templates: templates of the prompts.
        logit_scale: multiplier of the similarities.
        logit_bias: added to the scaled similarities, or None.
        emulated: True if the emulated vendor SDK computed the embeddings.
        embeddings_sha256: digest of the embeddings' bytes; empty for a classifier of a fused graph, which cannot be
            saved.
        tool_versions: versions of the tools that wrote the file.
        open_set: rules for images of none of the classes; not there without such rules.
        prompts: own prompts of each class, for which no templates are used; not there if templates make them.
    """

    schema_version: int = _WITH_TEMPLATES
    text_id: str
    model: ModelId
    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    logit_scale: LogitScale
    logit_bias: LogitBias | None
    emulated: bool
    embeddings_sha256: str
    tool_versions: dict[str, str]
    open_set: OpenSet | UnsetType = UNSET
    prompts: dict[str, tuple[str, ...]] | UnsetType = UNSET

    @property
    def own_prompts(self) -> dict[str, tuple[str, ...]]:
        """Own prompts of each class; empty if templates make them."""
        return {} if self.prompts is UNSET else self.prompts

    @property
    def background(self) -> tuple[str, ...]:
        """Names of the background classes."""
        return () if self.open_set is UNSET else self.open_set.background

    @property
    def all_names(self) -> tuple[str, ...]:
        """Names of the classes and of the background classes, one per row of the embeddings."""
        return self.class_names + self.background

    def with_open_set(self, open_set: OpenSet) -> ClassifierHeader:
        """Return the header with other rules."""
        return msgspec.structs.replace(self, open_set=open_set, schema_version=CLASSIFIER_SCHEMA)

    def with_prompts(self, prompts: dict[str, tuple[str, ...]]) -> ClassifierHeader:
        """Return the header with own prompts."""
        return msgspec.structs.replace(self, prompts=prompts, schema_version=CLASSIFIER_SCHEMA)


def encode_classifier(header: ClassifierHeader, embeddings: FloatArray) -> bytes:
    """Return the content of a classifier file."""
    buffer = io.BytesIO()
    np.savez(buffer, header=np.frombuffer(msgspec.json.encode(header), np.uint8), class_embeddings=embeddings)
    return buffer.getvalue()


def read_classifier(path: Path) -> tuple[ClassifierHeader, FloatArray]:
    """Read a classifier file: its header, and the embeddings, float32, shape (C, D), unit L2 norm per row.

    Raises:
        InputError: the file is missing, not a classifier file, of a newer version, or damaged.
    """
    try:
        with open_regular(path) as stream, zipfile.ZipFile(stream) as archive:
            header = _read_header(archive)
            embeddings = _read_embeddings(archive, len(header.all_names))
    except FileNotFoundError:
        raise InputError(f"Classifier file '{path}' does not exist.") from None
    except _DamagedError as error:
        raise InputError(f"Classifier file '{path}' is damaged: {error}. Make it again.") from error
    except Exception as error:  # zipfile and NumPy raise many types for damaged archives
        raise InputError(
            f"'{path}' is not a classifier file as ZeroShotClassifier.save writes it: {reason_of(error)}. Make it again."
        ) from error
    if header.schema_version > CLASSIFIER_SCHEMA:
        raise InputError(
            f"Classifier file '{path}' has schema {header.schema_version}; this clipmlu reads up to {CLASSIFIER_SCHEMA}."
        )
    if hashlib.sha256(embeddings.tobytes()).hexdigest() != header.embeddings_sha256:
        raise InputError(
            f"Classifier file '{path}' is damaged: its embeddings do not match their digest. Make it again."
        )
    norms = np.linalg.norm(embeddings, axis=1)
    wrong = np.flatnonzero(~(np.abs(norms - 1) <= _NORM_SLACK))  # also true for NaN
    if wrong.size:
        raise InputError(
            f"Classifier file '{path}' is damaged: the embedding of class '{header.all_names[wrong[0]]}' has the norm "
            f"{norms[wrong[0]]:g}, not 1. Make it again."
        )
    return header, embeddings


class _DamagedError(Exception):
    """A classifier file is damaged; the message says how."""


def _read_header(archive: zipfile.ZipFile) -> ClassifierHeader:
    with _open_member(archive, "header.npy", SMALL_FILE_BYTES) as member:
        shape, dtype = _read_array_header(member)
        content = member.read(SMALL_FILE_BYTES)
    if dtype != np.uint8 or shape != (len(content),):
        raise _DamagedError(f"its header is an array of type {dtype} and shape {shape}")
    header = decode_json(content, ClassifierHeader)
    if not header.class_names:
        raise _DamagedError("it has no classes")
    if header.own_prompts and (
        list(header.own_prompts) != list(header.class_names) or not all(header.own_prompts.values())
    ):
        raise _DamagedError("it does not have prompts for each class")
    return header


def _read_embeddings(archive: zipfile.ZipFile, classes: int) -> FloatArray:
    with _open_member(archive, "class_embeddings.npy", _MOST_BYTES) as member:
        shape, dtype = _read_array_header(member)
        if dtype != np.float32 or len(shape) != 2 or shape[0] != classes or shape[1] < 1:
            raise _DamagedError(f"its embeddings have the type {dtype} and the shape {shape}, for {classes} classes")
        size = shape[0] * shape[1] * 4
        if size > _MOST_BYTES:
            raise _DamagedError(f"its embeddings have the shape {shape}, more than a file may hold")
        content = member.read()
    if len(content) != size:
        raise _DamagedError(f"its embeddings have {len(content):,} bytes; their shape {shape} needs {size:,}")
    return np.frombuffer(content, "<f4").reshape(shape).astype(np.float32)


def _open_member(archive: zipfile.ZipFile, name: str, limit: int) -> BinaryIO:
    """Open a member that occurs once and is neither compressed nor encrypted, so that the file's size limits its size."""
    found = [member for member in archive.infolist() if member.filename == name]
    if len(found) != 1:
        raise _DamagedError(f"it holds '{name}' {len(found)} times")
    (member,) = found
    if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & _ENCRYPTED:
        raise _DamagedError(f"'{name}' is compressed or encrypted, which is not allowed")
    if member.file_size > limit or member.file_size != member.compress_size:
        raise _DamagedError(f"'{name}' says that it has {member.file_size:,} bytes")
    return archive.open(member)  # type: ignore[return-value]


def _read_array_header(stream: BinaryIO) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Return shape and dtype of an array in C order."""
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise _DamagedError(f"an array in it has the format version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran:
        raise _DamagedError("an array in it is in Fortran's order")
    return shape, dtype
