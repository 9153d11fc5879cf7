"""The arithmetic of the precision modes: rewriting of ONNX graphs, for the CPU and for the emulated SDK."""
