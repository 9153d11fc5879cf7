"""Imports ONNX files of other programs as exported bundles, without torch."""
