"""The opset limit and the operators of the emulated parser.

Public evidence ends at opsets 10 (CLIP sample) and 11 (all other visible values; the WeNet patch lowers 13 and 14 to
11): api 5 and 7.12. The list holds the operators of the vendor's public networks at those opsets; it proves that a
public model needs an operator, not that a card ran it.
"""

from __future__ import annotations

MAX_OPSET = 11

_OPERATORS = """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv
    ConvTranspose Cos CumSum DepthToSpace Div Dropout Elu Equal Erf Exp Expand Flatten Floor GRU Gather GatherElements
    GatherND Gemm GlobalAveragePool GlobalMaxPool Greater HardSigmoid Identity InstanceNormalization LRN LSTM LeakyRelu
    Less Log LogSoftmax MatMul Max MaxPool Min Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad Pow Range
    Reciprocal ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize RoiAlign ScatterND Shape
    Sigmoid Sin Slice Softmax Softplus Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Upsample Where
"""
OPERATORS = frozenset(_OPERATORS.split())


def node_type(op_type: str) -> str:
    """Return the SDK's node type; public code shows only ``IConvNode`` (CV adapter_model.py), others are inferred."""
    return f"I{op_type}Node"
