"""How a library function that goes on without an image says so."""

from __future__ import annotations

import logging

SKIPPED = "clipmlu_skipped"
"""Attribute of the log records that are about an input that was left out; the command line then returns 1."""

_log = logging.getLogger(__name__)


def log_skipped(reason: str) -> None:
    """Warn that an input was skipped, and why; the reason names it."""
    _log.warning("skipped: %s", reason, extra={SKIPPED: True})
