"""Target profiles: an opset, and a closed list of operators with the public evidence for each.

The evidence for MagicMind, whose documentation is not public (docs/magicmind-api.md):

- *clip*: the vendor's own CLIP sample, ``Cambricon/magicmind_cloud`` at dc085c1, ``buildin/cv/other/clip_pytorch``,
passes the file of torch 1.7.1 for openai/CLIP at opset 10 to the parser. The file is not published: the operators are
derived from openai/CLIP's code and torch's ``symbolic_opset9.py`` and ``symbolic_opset10.py`` of that time.
- *onnx*: another network that the same repository passes to the same parser as ONNX; derived in the same way, from the
network's code and torch's exporter: ``resnet50_onnx``, ``SwinTransformer_pytorch`` (torchvision ``swin_t``, opset 11,
dynamic batch), ``hoitransformer_pytorch`` (opset 11), ``WeNet_pytorch`` (opset 11).
- *sdk*: the SDK's network API has a node with that meaning. Seen in PaddlePaddle/Paddle-Lite, NNAdapter driver
``cambricon_mlu/converter`` (*pl*); in alibaba/heterogeneity-aware-lowering-and-optimization,
``ODLA/platforms/magicmind/odla_magicmind.cc`` (*odla*); or in a public copy of the SDK's ``AddI...Node`` samples
(*sample*). This shows that the card supports the operator, but not that the ONNX parser maps it.
- *none*: no public evidence. A core operator of ONNX 11 that a decomposition needs and that has no alternative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

EvidenceKind = Literal["clip", "onnx", "sdk", "none"]


@dataclasses.dataclass(frozen=True)
class Evidence:
    """The evidence for an operator.

    Attributes:
        kind: strength: ``clip`` > ``onnx`` > ``sdk`` > ``none``; see the module.
        source: where it was seen; for ``none``, what needs it.
    """

    kind: EvidenceKind
    source: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetProfile:
    """The known abilities of a target's parser.

    Attributes:
        name: name for messages.
        opset: the only opset of written graphs.
        operators: maps each allowed operator to its evidence.
        batch_only: operators that are allowed only for reading the size of the batch.
    """

    name: str
    opset: int
    operators: Mapping[str, Evidence]
    batch_only: frozenset[str] = frozenset()


def _table(kind: EvidenceKind, rows: str) -> dict[str, Evidence]:
    pairs = (row.strip().split(":", maxsplit=1) for row in rows.strip().splitlines())
    return {operator: Evidence(kind, source.strip()) for operator, source in pairs}


_OPERATORS = {
    **_table(
        "clip",
        """
        Add: residual connections, biases, positional embedding
        ArgMax: position of the end-of-text token, text.argmax(dim=-1)
        Cast: types of indices and of the class token
        Concat: class token in front of the patches; shapes
        ConstantOfShape: torch.zeros(batch, 1, width) of the class token
        Conv: patch embedding
        Div: LayerNorm; unit norm
        Gather: token embedding; class token; text pooling from flattened rows
        MatMul: attention, MLP, projections
        Mul: scale of the queries; QuickGELU; logit scale
        Pow: square of LayerNorm
        ReduceL2: x.norm(dim=-1, keepdim=True), symbolic_opset9.norm
        ReduceMean: LayerNorm, symbolic_opset9.layer_norm
        Reshape: heads of attention
        Shape: batch size of the class token and of the text pooling
        Sigmoid: QuickGELU
        Softmax: attention, over the last axis
        Split: queries, keys and values of attention, chunk(3, dim=-1), symbolic_opset9.prim_ConstantChunk
        Sqrt: LayerNorm
        Squeeze: indices
        Sub: LayerNorm
        Transpose: heads of attention; logits_per_text
        Unsqueeze: indices and shapes
        """,
    ),
    **_table(
        "onnx",
        """
        BatchNormalization: resnet50_onnx
        Erf: SwinTransformer_pytorch, nn.GELU at opset 11
        Flatten: resnet50_onnx; sdk (pl)
        Gemm: resnet50_onnx and SwinTransformer_pytorch, linear layers of two-dimensional inputs; sdk: IMatMulNode (odla)
        GlobalAveragePool: resnet50_onnx
        MaxPool: resnet50_onnx; sdk: IMaxPool2DNode (odla)
        Not: hoitransformer_pytorch, ~mask; sdk: ILogicNode NOT (pl, odla)
        Pad: SwinTransformer_pytorch, F.pad at opset 11; sdk: IPadNode (pl, odla, sample)
        Relu: resnet50_onnx; sdk: IActivation RELU
        Slice: SwinTransformer_pytorch, torch.roll at opset 11; sdk: ISliceNode (magicmind-api.md 2.6, pl)
        Tile: hoitransformer_pytorch, Tensor.repeat; sdk: ITileNode (sample)
        Where: WeNet_pytorch, masked_fill at opset 11; sdk: ISelectNode (odla, sample)
        """,
    ),
    **_table(
        "sdk",
        """
        And: ILogicNode AND (pl, odla)
        AveragePool: pooling of Paddle-Lite's driver (pl)
        Clip: IClipNode (pl, odla)
        Equal: ILogicNode EQ (pl, odla)
        Exp: IExpNode (pl)
        Expand: IExpandNode (pl)
        Floor: IFloorNode (odla)
        GatherND: IGatherNdNode (pl)
        Greater: ILogicNode (pl)
        LeakyRelu: pl
        Less: ILogicNode LT (magicmind-api.md 2.4, pl, odla)
        Log: ILogNode (pl)
        LogSoftmax: ILogSoftmaxNode (odla)
        Max: IMaximumNode (odla)
        Min: IMinimumNode (odla)
        Or: ILogicNode OR (pl, odla)
        Range: IRangeNode (magicmind-api.md 2.6, pl)
        Reciprocal: IReciprocalNode (odla)
        ReduceMax: IReduce MAX (odla)
        ReduceSum: IReduce ADD (pl, odla)
        Resize: IResizeNode (pl, sample)
        Tanh: IActivation TANH (pl, odla)
        """,
    ),
    **_table(
        "none",
        """
        Abs: decomposition of norms of order 1
        Identity: an output that equals another tensor
        IsNaN: PyTorch's guard of masked softmax, where it cannot be shown to do nothing
        Neg: rotary embeddings
        ReduceMin: as ReduceMax
        Softplus: decomposition of Mish
        """,
    ),
}

MAGICMIND = TargetProfile(
    name="MagicMind",
    opset=11,
    operators=MappingProxyType(_OPERATORS),
    batch_only=frozenset({"Shape", "ConstantOfShape", "Range", "Expand", "Tile"}),
)
"""Opset 11: the vendor's samples use 10 (CLIP) and 11; newer ones are lowered to 11 by its patches (WeNet)."""

PROFILES: Mapping[str, TargetProfile] = MappingProxyType({"magicmind": MAGICMIND})
"""Maps a backend's profile name to the profile."""
