"""The content of a bundle's manifest."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from clipmlu._version import __version__
from clipmlu.display import EMULATED_MARK
from clipmlu.specs import (
    CalibrationRecord,
    GraphQuantisation,
    Layout,
    LogitBias,
    LogitScale,
    MluBuild,
    ModelId,
    NaturalInt,
    PositiveInt,
    Precision,
    PreprocessSpec,
    QuantisationOptions,
    Spec,
    TensorSpec,
    TokenizerSpec,
    TowerName,
)

SCHEMA_VERSION = 1


MANIFEST_NAME = "manifest.json"


TOKENIZER_NAME = "tokenizer.json"


CALIBRATION_NAME = "calibration.json"


GRAPH_SUFFIX = ".onnx"


class FileRecord(Spec, frozen=True, kw_only=True):
    """Digest and size of one file.

    Attributes:
        sha256: SHA-256 of the content in lower-case hex.
        size: bytes.
    """

    sha256: str
    size: NaturalInt


class Tower(Spec, frozen=True, kw_only=True):
    """One graph of a bundle.

    Attributes:
        file: the graph's ONNX or runtime file, relative to the bundle.
        inputs: in the graph's order.
        outputs: in the graph's order.
    """

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class ParityRecord(Spec, frozen=True, kw_only=True):
    """One measured difference between a graph and its reference.

    Attributes:
        tower: name of the graph.
        output: name of the output.
        batch_size: rows of the compared batch.
        max_abs_diff: largest absolute difference of any element.
        min_cosine: smallest cosine similarity of any row, or None for outputs other than embeddings.
        allowed_abs_diff: the bound on ``max_abs_diff``.
    """

    tower: TowerName
    output: str
    batch_size: PositiveInt
    max_abs_diff: float
    min_cosine: float | None
    allowed_abs_diff: float


class Export(Spec, frozen=True, kw_only=True):
    """The origin of the canonical graphs.

    Attributes:
        opset: ONNX opset of the graphs, read back from the files.
        exporter: name of the exporter, such as ``"torch.onnx dynamo"``.
        weights_digest: SHA-256 over all weights in a fixed order.
        source_files: digests of the model's local files, by file name; empty for downloads.
        parity: differences from torch, measured before publication.
        notes: one line for each assumption, omission or change of the weights.
        hub_files: versions of the files from the hub, by ``org/name::file``: a digest, or a commit;
            of ModelScope also the commit of a repository, by ``ms:org/name``.
    """

    opset: PositiveInt
    exporter: str
    weights_digest: str
    source_files: dict[str, FileRecord]
    parity: tuple[ParityRecord, ...]
    notes: tuple[str, ...] = ()
    hub_files: dict[str, str] = msgspec.field(default_factory=dict)


class SeenData(Spec, frozen=True, kw_only=True):
    """The content of ``calibration.json``: data that were used to quantise a bundle and must not be evaluated.

    Attributes:
        images: content digests; see ``data.images.content_digest``.
        prompts: texts that the text tower was calibrated with.
    """

    images: tuple[str, ...]
    prompts: tuple[str, ...]


class Placement(Spec, frozen=True, kw_only=True):
    """The target and arithmetic of a graph.

    Attributes:
        target: the target's name on the command line, such as ``"cpu"``.
        backend: the runtime of the file, such as ``"onnxruntime"``.
        precision: arithmetic of the graph.
        emulated: True if the emulated vendor SDK built the file and runs it.
    """

    target: str
    backend: str
    precision: Precision
    emulated: bool


class Compilation(Spec, frozen=True, kw_only=True):
    """The record of a compilation.

    Attributes:
        target: the target's name on the command line, such as ``"cpu"``.
        backend: the runtime of the files, such as ``"onnxruntime"``.
        precision: arithmetic of the graphs.
        dynamic_shape: True if batches may have 1..``max_batch`` rows; False if every batch has ``batch_size`` rows
            (partial ones are padded and trimmed).
        batch_size: rows of a batch: the fixed size if static, the preferred size if dynamic.
        max_batch: the largest batch of a dynamic bundle.
        emulated: True if the emulated vendor SDK built any part of the bundle.
        source_digest: digest of the exported bundle's manifest.
        parity: differences from the exported graphs, measured before publication.
        text_tower: placement of the text tower if it differs from the rest.
        mlu: options of the build for MLU cards, or None for other targets.
        quantisation: options of the quantisation, or None for a mode without.
        calibration: the calibration data, or None.
        quantised: maps a tower to its quantisation; empty in a mode that does not quantise.
        agreement: share of the checked images with the same best class as in float32, or one as good there, or None if
            it was not measured; see ``compile.checks``.
        uint8_input: True if the graph that takes images takes uint8 pixels, 0..255, and normalises them itself.
        row_macs: maps an input of the fused graph to the multiply-accumulate operations of one row; empty in other
            layouts.
    """

    target: str
    backend: str
    precision: Precision
    dynamic_shape: bool
    batch_size: PositiveInt
    max_batch: PositiveInt
    emulated: bool
    source_digest: str
    parity: tuple[ParityRecord, ...]
    text_tower: Placement | None = None
    mlu: MluBuild | None = None
    quantisation: QuantisationOptions | None = None
    calibration: CalibrationRecord | None = None
    quantised: dict[TowerName, GraphQuantisation] = msgspec.field(default_factory=dict)
    agreement: float | None = None
    uint8_input: bool = False
    row_macs: dict[str, NaturalInt] = msgspec.field(default_factory=dict)

    def placement(self, tower: TowerName) -> Placement:
        """Return the placement of a graph."""
        if tower == "text" and self.text_tower is not None:
            return self.text_tower
        emulated = self.emulated
        return Placement(target=self.target, backend=self.backend, precision=self.precision, emulated=emulated)


def emulated_mark(emulated: bool) -> str:
    """Return the mark to append to a result of the emulated vendor SDK, or an empty text."""
    return EMULATED_MARK if emulated else ""


class Manifest(Spec, frozen=True, kw_only=True):
    """The content of ``manifest.json``.

    Attributes:
        schema_version: version of this layout; newer ones are rejected.
        kind: ``exported`` for canonical graphs, ``compiled`` for graphs of a target.
        model: the model's identity.
        layout: ``towers`` for one graph per tower, ``joint`` for the fused two-input graph.
        towers: by tower name; ``{"image", "text"}`` or ``{"joint"}``.
        preprocess: preprocessing of images.
        tokenizer: tokenization of texts.
        embedding_dim: elements of an embedding.
        logit_scale: the multiplier of cosine similarities (the exponential of open_clip's stored value).
        logit_bias: added to the scaled similarities (SigLIP), or None.
        activation: ``quick_gelu``, or the other activation of the blocks, as built.
        text_id: digest of the text tower, its tokenizer and weights; the same for a bundle and all compiled from it.
        export: the origin of the canonical graphs.
        compilation: the record of the compilation, or None for an exported bundle.
        files: digest and size of every file except the manifest, by relative POSIX path.
        tool_versions: versions of clipmlu and of the libraries that wrote the bundle.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["exported", "compiled"]
    model: ModelId
    layout: Layout
    towers: dict[TowerName, Tower]
    preprocess: PreprocessSpec
    tokenizer: TokenizerSpec
    embedding_dim: PositiveInt
    logit_scale: LogitScale
    logit_bias: LogitBias | None
    activation: str
    text_id: str
    export: Export
    compilation: Compilation | None = None
    files: dict[str, FileRecord]
    tool_versions: dict[str, str]


def text_id_of(files: dict[str, FileRecord], tower_files: list[str], tokenizer: TokenizerSpec) -> str:
    """Return a digest of a text tower: of its graph files, its tokenizer file and its tokenizer spec.

    Args:
        files: records of the exported bundle's files.
        tower_files: the graph file of the text (or joint) tower and its external data, if any.
        tokenizer: the tokenizer spec.

    Returns:
        SHA-256 in hex.
    """
    digest = hashlib.sha256()
    for name in [*sorted(tower_files), TOKENIZER_NAME]:
        digest.update(f"{name}={files[name].sha256}\n".encode())
    digest.update(msgspec.json.encode(tokenizer, order="sorted"))
    return digest.hexdigest()


def current_tool_versions(*packages: str) -> dict[str, str]:
    """Return the versions of clipmlu and of the named installed packages, for a manifest or a report."""
    from importlib import metadata

    return {"clipmlu": __version__, **{package: metadata.version(package) for package in packages}}
