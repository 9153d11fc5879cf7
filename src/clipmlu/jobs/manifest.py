"""Content of ``job.json``: everything that decides the results of a job, by value."""

from __future__ import annotations

from typing import Literal

import msgspec

from clipmlu.backends.provenance import Provenance
from clipmlu.bundle.space import EmbeddingSpace
from clipmlu.classify.open_set import OpenSet
from clipmlu.data.url.options import UrlOptions
from clipmlu.jobs.formats import FormatName
from clipmlu.jobs.rows import RowSchema
from clipmlu.keys import make_key, value_digest
from clipmlu.specs import NaturalInt, PositiveInt, Spec

_SHOWN_CHARACTERS = 60
_DIGESTS = ("bundle", "class_embeddings")
_NAMES = {
    "class_names": "labels",
    "class_embeddings": "classifier file",
    "embedding_dim": "embedding size",
    "embedding_dtype": "dtype",
    "pyarrow": "version of pyarrow",
}
"""Parts of the key that users know by another name."""


class JobSettings(Spec, frozen=True, kw_only=True):
    """The options that decide the results of a job, besides its columns; see ``JobOptions``.

    Attributes:
        kind: what the job does.
        templates: resolved templates of a job that classifies, else None.
        class_embeddings: SHA-256 in hex of the classifier file that was given, or None.
        pyarrow: version of pyarrow if it writes the shards, else None.
        open_set: rules for images of none of the classes, or None; the last class name is then the none label.
        prompts: own prompts of each class, or None if templates make them.
    """

    kind: Literal["embed", "classify"]
    shard_size: PositiveInt
    shard_format: FormatName
    batch_size: PositiveInt
    fast_preprocess: bool
    max_pixels: PositiveInt
    urls: UrlOptions | None = None
    templates: tuple[str, ...] | None = None
    class_embeddings: str | None = None
    open_set: OpenSet | None = None
    prompts: dict[str, tuple[str, ...]] | None = None
    pyarrow: str | None = None

    def class_names(self, schema: RowSchema) -> tuple[str, ...]:
        """Return the classes among the class names of the rows: all but the none label."""
        names = schema.class_names or ()
        return names if self.open_set is None else names[:-1]


class InputPlan(Spec, frozen=True, kw_only=True):
    """The input of a job as it was listed.

    Attributes:
        digest: SHA-256 in hex of ``inputs.jsonl``, which holds names, sizes and times of all files.
        shards: number of pieces.
        images: number of images; None if it is known only when the files are read.
    """

    digest: str
    shards: NaturalInt
    images: NaturalInt | None


class JobOrigin(Spec, frozen=True, kw_only=True):
    """Where a job was begun: how its bundle and its images are found again. It decides no result.

    Attributes:
        bundle: absolute path of the bundle, as a name.
        folder: the working directory, to which relative names of images refer, as a name.
        space: embedding space of the bundle.
    """

    bundle: str
    folder: str
    space: EmbeddingSpace


class JobManifest(Spec, frozen=True, kw_only=True):
    """Content of ``job.json``.

    Attributes:
        key: digest of everything that decides the results, by name; a job resumes only with an equal key.
        settings: options that decide the results.
        schema: columns of the rows.
        inputs: the input.
        provenance: bundle and software that compute the results.
        classifier_sha256: digest in hex of the job's classifier file, with which all workers classify; None if it has none.
        origin: where the job was begun; None in jobs of earlier versions.
    """

    key: dict[str, str]
    settings: JobSettings
    schema: RowSchema
    inputs: InputPlan
    provenance: Provenance
    classifier_sha256: str | None = None
    origin: JobOrigin | None = None

    def is_same_job(self, other: JobManifest) -> bool:
        """Return whether two manifests are equal, wherever their jobs were begun and whatever classifier was computed."""
        return msgspec.structs.replace(self, classifier_sha256=other.classifier_sha256, origin=other.origin) == other

    @property
    def digest(self) -> str:
        """Digest of the key, by which records say whose they are."""
        return value_digest(self.key)

    @property
    def shard_format(self) -> FormatName:
        """Format of the shard files."""
        return self.settings.shard_format

    @property
    def shards(self) -> int:
        """Number of shards."""
        return self.inputs.shards


def make_manifest(
    settings: JobSettings, schema: RowSchema, inputs: InputPlan, provenance: Provenance, origin: JobOrigin
) -> JobManifest:
    """Return the manifest of a job with its key."""
    parts = _deciding(settings, schema, provenance)
    return JobManifest(
        key=make_key(inputs=inputs.digest, **parts),
        settings=settings,
        schema=schema,
        inputs=inputs,
        provenance=provenance,
        origin=origin,
    )


def describe_differences(stored: JobManifest, wanted: JobManifest) -> list[str]:
    """Return the parts of two keys that differ, in words, with the values if they are short; without the input."""
    old, new = (_deciding(each.settings, each.schema, each.provenance) for each in (stored, wanted))
    names = [name for name in {**stored.key, **wanted.key} if name != "inputs"]
    return [
        _describe(name, old.get(name), new.get(name)) for name in names if stored.key.get(name) != wanted.key.get(name)
    ]


def _deciding(settings: JobSettings, schema: RowSchema, provenance: Provenance) -> dict[str, object]:
    """Return what decides the results, by name, besides the input."""
    return {
        "bundle": provenance.bundle_digest,
        **{
            name: value
            for name, value in msgspec.structs.asdict(settings).items()
            if value is not None or name not in ("open_set", "prompts")
        },
        **msgspec.structs.asdict(schema),
        **{f"version of {name}": version for name, version in provenance.tool_versions.items()},
    }


def _describe(name: str, old: object, new: object) -> str:
    """Return one difference in words: with both values if they are short, and no digests."""
    shown = _NAMES.get(name, name.replace("_", " "))
    values = [_shown(value) for value in (old, new)]
    if name in _DIGESTS or any(len(value) > _SHOWN_CHARACTERS for value in values):
        return f"other {shown}"
    return f"{shown} {values[0]}, not {values[1]}"


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if value is None:
        return "none"
    return ", ".join(value) if isinstance(value, tuple) else str(value)
