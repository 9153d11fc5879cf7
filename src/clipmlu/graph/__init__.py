"""Reading and rewriting of ONNX graphs."""
