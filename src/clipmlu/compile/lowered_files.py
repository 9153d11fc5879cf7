"""The description beside lowered graphs: a JSON header for programs, and a README for people."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from clipmlu.backends.base import GraphOptions
from clipmlu.bundle.manifest import FileRecord, Manifest, Tower
from clipmlu.bundle.other_folders import LOWERED_NAME
from clipmlu.graph.pixels import PIXELS
from clipmlu.magicmind.build import build_request, shapes_of, with_sizes
from clipmlu.magicmind.driver.building import builder_settings
from clipmlu.specs import (
    CalibrationRecord,
    Layout,
    LogitBias,
    LogitScale,
    ModelId,
    NaturalInt,
    NodeType,
    PositiveInt,
    Precision,
    PreprocessSpec,
    QuantisationOptions,
    Spec,
    TensorSpec,
    TokenizerSpec,
    TowerName,
)

if TYPE_CHECKING:  # it imports onnx
    from clipmlu.compile.preparing import PreparedGraph

README_NAME = "README.md"
LABELS_NAME = "labels.txt"
TOKENS_NAME = "input_ids.npy"
SCHEMA_VERSION = 1
_RESIZING = {
    "shortest": "the shorter side is fitted, the centre cropped",
    "longest": "the longer side is fitted, the rest filled",
    "squash": "both sides are fitted, whatever the aspect ratio",
}
"""What a mode of resizing does, in words."""
_SHAPE = tuple[PositiveInt, ...]


class GraphInput(Spec, frozen=True, kw_only=True):
    """One input of a lowered graph.

    Attributes:
        name: name of the tensor.
        dtype: NumPy's name of the element type in the file.
        sdk_dtype: the SDK's name of the element type of the built model.
        shape: shape in the file; a name for a variable size.
        axes: letters of the axes.
        minimum: smallest shape.
        preferred: shape to build for.
        maximum: largest shape.
        values: the values, in words.
    """

    name: str
    dtype: str
    sdk_dtype: str
    shape: tuple[PositiveInt | str, ...]
    axes: str
    minimum: _SHAPE
    preferred: _SHAPE
    maximum: _SHAPE
    values: str


class GraphOutput(Spec, frozen=True, kw_only=True):
    """One output of a lowered graph: as ``GraphInput``, and ``values`` says what its rows are."""

    name: str
    dtype: str
    shape: tuple[PositiveInt | str, ...]
    values: str


class LoweredGraph(Spec, frozen=True, kw_only=True):
    """One lowered graph.

    Attributes:
        file: its ONNX file.
        build_config: file with the SDK's configuration, for ``BuilderConfig.parse_from_file``.
        inputs: in the graph's order.
        outputs: in the graph's order.
        node_types: maps a node's name to the float type that ``compile`` sets for it with ``set_precision``.
    """

    file: str
    build_config: str
    inputs: tuple[GraphInput, ...]
    outputs: tuple[GraphOutput, ...]
    node_types: dict[str, NodeType]


class LoweredHeader(Spec, frozen=True, kw_only=True):
    """The content of ``lowered.json``.

    Attributes:
        schema_version: version of this layout.
        target: the target whose parser reads the graphs.
        model: the model.
        source_digest: digest of the exported bundle.
        layout: two towers, or the fused graph.
        joined: whether the fused graph was joined of two towers; a compilation of that bundle has none.
        opset: ONNX opset of the graphs.
        precision: arithmetic to build them in.
        dynamic_shape: whether the number of images is variable.
        graphs: by tower name.
        preprocess: preprocessing of images.
        tokenizer: tokenization of texts, in addition to ``tokenizer.json``.
        logit_scale: factor of cosine similarities.
        logit_bias: added to the scaled similarities, or None.
        labels: number of classes in ``labels.txt``; 0 without.
        quantisation: options of the quantisation that is prepared in the graphs; None in a mode that quantises nothing.
        calibration: the data that it was prepared with, or None.
        files: digest and size of every other file.
        tool_versions: versions of clipmlu and of the libraries.
    """

    schema_version: NaturalInt = SCHEMA_VERSION
    target: str
    model: ModelId
    source_digest: str
    layout: Layout
    joined: bool
    opset: PositiveInt
    precision: Precision
    dynamic_shape: bool
    graphs: dict[TowerName, LoweredGraph]
    preprocess: PreprocessSpec
    tokenizer: TokenizerSpec
    logit_scale: LogitScale
    logit_bias: LogitBias | None
    labels: NaturalInt
    quantisation: QuantisationOptions | None
    calibration: CalibrationRecord | None
    files: dict[str, FileRecord]
    tool_versions: dict[str, str]


def describe_graph(prepared: PreparedGraph, manifest: Manifest, largest_token: int) -> LoweredGraph:
    """Return the description of a graph.

    Args:
        prepared: the lowered graph.
        manifest: facts of the model.
        largest_token: largest token id.
    """
    tower, options = prepared.graph.tower, prepared.options
    return LoweredGraph(
        file=tower.file,
        build_config=f"{prepared.graph.name}.build.json",
        inputs=tuple(_describe_input(tensor, options, manifest, largest_token) for tensor in tower.inputs),
        outputs=tuple(_describe_output(tensor, options, manifest) for tensor in tower.outputs),
        node_types=dict(options.node_types),
    )


def build_config(tower: Tower, options: GraphOptions) -> dict[str, Any]:
    """Return the SDK's configuration with which ``compile`` builds a graph, as one JSON object."""
    merged: dict[str, Any] = {}
    shapes = [shapes_of(tensor, options) for tensor in tower.inputs]
    for part in builder_settings(build_request(tower, shapes, options)):
        for key, value in part.items():
            merged[key] = {**merged[key], **value} if isinstance(value, dict) and key in merged else value
    return merged


def _describe_input(tensor: TensorSpec, options: GraphOptions, manifest: Manifest, largest_token: int) -> GraphInput:
    shapes = shapes_of(tensor, options)
    pixels = tensor.name == PIXELS
    return GraphInput(
        name=tensor.name,
        dtype=tensor.dtype,
        sdk_dtype="FLOAT32" if pixels else "INT32",
        shape=with_sizes(tensor, options).shape,
        axes="NCHW" if pixels else "NT",
        minimum=shapes.smallest,
        preferred=shapes.preferred,
        maximum=shapes.largest,
        values=_pixel_values(manifest.preprocess) if pixels else f"token ids, 0 to {largest_token}",
    )


def _describe_output(tensor: TensorSpec, options: GraphOptions, manifest: Manifest) -> GraphOutput:
    values = {
        "image_embeds": "embeddings of unit length, one row for each image",
        "text_embeds": "embeddings of unit length, one row for each text",
        "logits_per_image": f"{_scores(manifest.logit_scale, manifest.logit_bias)}; one row for each image",
        "logits_per_text": "the same, one row for each text",
    }
    return GraphOutput(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=with_sizes(tensor, options).shape,
        values=values.get(tensor.name, ""),
    )


def _scores(scale: float, bias: float | None) -> str:
    if bias is None:
        return f"{scale:g} x cosine similarity, and softmax of a row gives probabilities"
    return f"{scale:g} x cosine similarity {bias:+g}, and sigmoid of each gives its probability"


def _pixel_values(spec: PreprocessSpec) -> str:
    low = min(-mean / std for mean, std in zip(spec.mean, spec.std, strict=True))
    high = max((1 - mean) / std for mean, std in zip(spec.mean, spec.std, strict=True))
    return f"RGB, (pixel / 255 - mean) / std: {low:.4g} to {high:.4g}"


def write_readme(header: LoweredHeader) -> str:
    """Return the description as Markdown."""
    return "\n".join([*_introduction(header), *_graphs(header), *_inputs_of_people(header), *_commands(header)]) + "\n"


def _introduction(header: LoweredHeader) -> Iterator[str]:
    yield f"# {header.model}, lowered for MagicMind"
    yield ""
    origin = (
        f"byte for byte what `clipmlu compile --target {header.target}` hands to the SDK's parser with the same options"
    )
    if header.joined:
        origin = "the two towers joined to one graph, in the form of the vendor's sample"
    yield (
        f"ONNX of opset {header.opset} with plain operators: {origin}. This file says what goes in and what comes out; "
        f"`{LOWERED_NAME}` says the same for programs."
    )
    yield ""


def _graphs(header: LoweredHeader) -> Iterator[str]:
    for name, graph in header.graphs.items():
        yield f"## {graph.file}"
        yield ""
        yield "| | name | type | shape in the file | build for | values |"
        yield "|---|---|---|---|---|---|"
        for given in graph.inputs:
            ends = _dims(given.preferred)
            if given.minimum != given.maximum:
                ends += f", from {_dims(given.minimum)} to {_dims(given.maximum)}"
            kind = (
                given.dtype
                if given.dtype == given.sdk_dtype.lower()
                else f"{given.dtype}, {given.sdk_dtype} after the build"
            )
            yield f"| in | {given.name} | {kind} | {_dims(given.shape)} ({given.axes}) | {ends} | {given.values} |"
        for result in graph.outputs:
            yield f"| out | {result.name} | {result.dtype} | {_dims(result.shape)} | | {result.values} |"
        yield ""
        if graph.node_types:
            yield (
                f"`compile` keeps {len(graph.node_types)} nodes of the {name} graph in float with `INode.set_precision`, between parse "
                "and build; `lowered.json` names them under `node_types`."
            )
            yield ""


def _inputs_of_people(header: LoweredHeader) -> Iterator[str]:
    spec, tokenizer = header.preprocess, header.tokenizer
    yield "## Preprocessing"
    yield ""
    yield (
        f"- Images: {spec.width} x {spec.height} pixels, `{spec.resize_mode}` ({_RESIZING[spec.resize_mode]}), {spec.interpolation} of Pillow; "
        f"RGB, then (pixel / 255 - mean) / std."
    )
    yield f"- mean {list(spec.mean)}, std {list(spec.std)}"
    yield (
        f"- Texts: `tokenizer.json` (read by the library `tokenizers`), cleaned as `{tokenizer.clean}`, {tokenizer.context_length} token "
        f"ids a text, padded with {tokenizer.pad_id}."
    )
    if header.layout == "towers":
        yield f"- Scores: {_scores(header.logit_scale, header.logit_bias)}: image_embeds @ text_embeds.T has the cosine similarities."
    if header.labels:
        yield f"- `{LABELS_NAME}`: {header.labels} class names, one a line; `{TOKENS_NAME}`: the token ids of their prompts, int64."
    if header.precision.bits is not None:
        yield (
            "- Calibrate with normalised float32 images, not with those that you evaluate. What was prepared in the graphs for this "
            "mode is under `quantisation` in `lowered.json`."
        )
    yield ""


def _commands(header: LoweredHeader) -> Iterator[str]:
    yield "## Build"
    yield ""
    yield "With a `gen_model.py` of magicmind_cloud (its options are those of `python_common/build_param.py`):"
    yield ""
    for graph in header.graphs.values():
        yield f"    {shlex.join(_vendor_command(header, graph))}"
    yield ""
    yield "With the SDK's sample `onnx_build`:"
    yield ""
    for name, graph in header.graphs.items():
        dims = [",".join(map(str, given.preferred)) for given in graph.inputs]
        model = ["--onnx", graph.file, "--magicmind_model", f"{name}.mm", "--build_config", graph.build_config]
        yield f"    {shlex.join(['onnx_build', *model, '--input_dims', *dims])}"
    yield ""
    yield (
        "`*.build.json` is the whole configuration that `compile` gives the SDK, for `BuilderConfig.parse_from_file` or `--build_config`. "
        "Without a card, put `clipmlu emulate --` in front of a Python command."
    )


def _vendor_command(header: LoweredHeader, graph: LoweredGraph) -> list[str]:
    words = ["python", "gen_model.py", "--onnx", graph.file, "--magicmind_model", f"{graph.file.partition('.')[0]}.mm"]
    words += ["--precision", header.precision.value]
    for given in graph.inputs:
        words += ["--input_dims", *map(str, given.preferred)]
    words += ["--batch_size", *(str(given.preferred[0]) for given in graph.inputs)]
    words += ["--dynamic_shape", "true" if header.dynamic_shape else "false"]
    if header.dynamic_shape:
        for given in graph.inputs:
            words += ["--dim_range_min", *map(str, given.minimum), "--dim_range_max", *map(str, given.maximum)]
    return [*words, "--type64to32_conversion", "true", "--conv_scale_fold", "true"]


def _dims(shape: tuple[int | str, ...]) -> str:
    return " x ".join(map(str, shape))
