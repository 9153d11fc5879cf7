"""Log records about skipped inputs."""

from __future__ import annotations

import logging

SKIPPED = "clipmlu_skipped"
"""Attribute of log records about a skipped input; the command line then exits with code 1."""

_log = logging.getLogger(__name__)


def log_skipped(reason: str) -> None:
    """Log a warning that an input was skipped; the reason names the input."""
    _log.warning("skipped: %s", reason, extra={SKIPPED: True})
