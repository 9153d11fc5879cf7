"""Cambricon's MagicMind: ``driver.py`` alone speaks to the SDK; the rest reaches the driver, here or in a worker."""
