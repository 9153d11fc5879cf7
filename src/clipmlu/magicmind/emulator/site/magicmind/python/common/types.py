"""``magicmind.python.common.types`` (MC resnet50_onnx calibrator.py, u2net gen_model.py)."""

from clipmlu.magicmind.emulator.types import get_datatype_by_numpy, get_numpy_dtype_by_datatype

__all__ = ["get_datatype_by_numpy", "get_numpy_dtype_by_datatype"]
