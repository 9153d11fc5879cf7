"""Accuracy on a dataset."""
