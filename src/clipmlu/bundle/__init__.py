"""Bundles: the manifest, and opening, verifying and publishing the directory."""
