"""Cambricon's MagicMind: only ``driver.py`` calls the SDK; the other modules call the driver, here or in a worker."""
