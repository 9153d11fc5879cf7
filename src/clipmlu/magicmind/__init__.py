"""Cambricon's MagicMind: only the package ``driver`` calls the SDK; the other modules call the driver, here or in a worker."""

MM_RUN_PATH = "MM_RUN_PATH"
"""Environment variable of the vendor's scripts: the folder of the tool ``mm_run`` (docs/magicmind-api.md, 4.1)."""
