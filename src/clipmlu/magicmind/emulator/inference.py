"""Shape inference with the SDK's status errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx

from clipmlu.graph import shapes
from clipmlu.magicmind.emulator.status import Code, StatusError


def infer_shapes(model: onnx.ModelProto, inputs: Mapping[str, Sequence[int]] | None = None) -> shapes.Shapes:
    """Infer shapes; see ``shapes.infer_shapes``.

    Raises:
        StatusError: the shapes contradict each other, or an operator is unknown.
    """
    try:
        return shapes.infer_shapes(model, inputs)
    except shapes.ShapeInferenceError as error:
        raise StatusError(Code.INVALID_ARGUMENT, str(error)) from error
    except shapes.UnknownOperatorError as error:
        raise StatusError(Code.UNIMPLEMENTED, str(error)) from error
