"""What a bundle's manifest says."""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from clipmlu._version import __version__
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
    """Digest and size of one file: SHA-256 in lower-case hex, and bytes."""

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
    """One measured agreement between a graph and its reference.

    Attributes:
        tower: which graph.
        output: which output of it.
        batch_size: rows in the batch that was compared.
        max_abs_diff: largest absolute difference of any element.
        min_cosine: smallest cosine similarity of any row, or None for outputs that are no embeddings.
        allowed_abs_diff: the bound on ``max_abs_diff``.
    """

    tower: TowerName
    output: str
    batch_size: PositiveInt
    max_abs_diff: float
    min_cosine: float | None
    allowed_abs_diff: float


class Export(Spec, frozen=True, kw_only=True):
    """How the canonical graphs came to be.

    Attributes:
        opset: ONNX opset of the graphs, read back from the files.
        exporter: which exporter wrote them, such as ``"torch.onnx dynamo"``.
        weights_digest: SHA-256 over all weights in a fixed order.
        source_files: digests of the local files that the model was read from, by file name; empty for downloads.
        parity: what was measured against torch before the bundle was published.
        notes: what was taken for granted about the weights, left out or changed, a line each.
        hub_files: versions of the files that came from the hub, by ``org/name::file``: a digest, or a commit.
    """

    opset: PositiveInt
    exporter: str
    weights_digest: str
    source_files: dict[str, FileRecord]
    parity: tuple[ParityRecord, ...]
    notes: tuple[str, ...] = ()
    hub_files: dict[str, str] = msgspec.field(default_factory=dict)


class SeenData(Spec, frozen=True, kw_only=True):
    """The content of ``calibration.json``: what had a say in how a bundle was quantised, and is not to be evaluated.

    Attributes:
        images: content digests; see ``data.images.content_digest``.
        prompts: texts that the text tower was calibrated with.
    """

    images: tuple[str, ...]
    prompts: tuple[str, ...]


class Placement(Spec, frozen=True, kw_only=True):
    """Where a graph runs, and how.

    Attributes:
        target: the target as named on the command line, such as ``"cpu"``.
        backend: the runtime that executes the file, such as ``"onnxruntime"``.
        precision: arithmetic of the graph.
        emulated: True when the emulated vendor SDK made the file and runs it.
    """

    target: str
    backend: str
    precision: Precision
    emulated: bool


class Compilation(Spec, frozen=True, kw_only=True):
    """What was decided when an exported bundle was compiled.

    Attributes:
        target: the target as named on the command line, such as ``"cpu"``.
        backend: the runtime that executes the files, such as ``"onnxruntime"``.
        precision: arithmetic of the graphs.
        dynamic_shape: True when any batch of 1..``max_batch`` rows is taken; False when every batch has
            ``batch_size`` rows (partial ones are padded and trimmed).
        batch_size: rows of a batch: the fixed size when static, the preferred size when dynamic.
        max_batch: the largest batch a dynamic bundle takes.
        emulated: True when anything in the bundle was made by the emulated vendor SDK.
        source_digest: digest of the exported bundle's manifest.
        parity: what was measured against the exported graphs before the bundle was published.
        text_tower: where the text tower runs if not where the rest does.
        mlu: how the graphs were built for MLU cards, or None for other targets.
        quantisation: how the mode quantises, or None for one that does not.
        calibration: which data the graphs were calibrated with, or None.
        quantised: tower -> how its tensors were quantised; empty in a mode that quantises nothing.
        agreement: share of the checked images whose best class is the same as in float32 or as good there, or None where
            that was not measured; see ``compile.checks``.
        uint8_input: the graph that takes images takes their pixels as uint8, 0..255, and normalises them itself.
        row_macs: input of the fused graph -> multiply-accumulate operations of one row of it; empty in other layouts.
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
        """Where a graph runs."""
        if tower == "text" and self.text_tower is not None:
            return self.text_tower
        emulated = self.emulated
        return Placement(target=self.target, backend=self.backend, precision=self.precision, emulated=emulated)


class Manifest(Spec, frozen=True, kw_only=True):
    """The content of ``manifest.json``.

    Attributes:
        schema_version: version of this layout; a newer one is refused.
        kind: ``exported`` for canonical graphs, ``compiled`` for graphs bound to a target.
        model: which model.
        layout: ``towers`` for one graph per tower, ``joint`` for the fused two-input graph.
        towers: by tower name; ``{"image", "text"}`` or ``{"joint"}``.
        preprocess: how images become input tensors.
        tokenizer: how texts become token ids.
        embedding_dim: elements of an embedding.
        logit_scale: the multiplier of cosine similarities (the exponential of what open_clip stores).
        logit_bias: what is added to the scaled similarities (SigLIP), or None.
        activation: ``quick_gelu`` or the activation of the blocks otherwise, as built.
        text_id: identifies the text tower, its tokenizer and weights; the same in a bundle and all compiled from it.
        export: how the canonical graphs were made.
        compilation: how they were compiled, or None for an exported bundle.
        files: digest and size of every file but the manifest, by relative POSIX path.
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
    """Identify a text tower by the digests of its graph files, its tokenizer file and its tokenizer spec.

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
    """Versions of clipmlu and of the named installed packages, for a manifest or a report."""
    from importlib import metadata

    return {"clipmlu": __version__, **{package: metadata.version(package) for package in packages}}
