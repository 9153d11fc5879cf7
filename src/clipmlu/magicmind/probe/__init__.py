"""Tests undocumented behaviour of the MagicMind SDK on tiny graphs, and writes a report."""
