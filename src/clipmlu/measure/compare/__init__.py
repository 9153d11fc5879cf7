"""Comparison of two bundles."""
