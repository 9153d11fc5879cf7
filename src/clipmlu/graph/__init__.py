"""Everything that reads or rewrites an ONNX graph."""
