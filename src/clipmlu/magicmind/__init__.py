"""Cambricon's MagicMind: only the package ``driver`` calls the SDK; the other modules call the driver, here or in a worker."""
