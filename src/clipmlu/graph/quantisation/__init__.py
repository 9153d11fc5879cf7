"""What the precision modes compute: one rewriting of ONNX graphs, for the CPU and for the emulated SDK alike."""
