"""The library's log records of workers, for the process that runs the job."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Iterable


def sendable(record: logging.LogRecord) -> logging.LogRecord:
    """Return a log record whose message is complete, which can be pickled."""
    record = copy.copy(record)
    record.msg, record.args, record.exc_info = record.getMessage(), None, None
    return record


def log_again(records: Iterable[logging.LogRecord]) -> None:
    """Pass log records of a worker to the loggers of this process."""
    for record in records:
        logging.getLogger(record.name).handle(record)


class LogCollector(logging.Handler):
    """Collects log records from ``WARNING`` on."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[logging.LogRecord] = []
        self._taking = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        with self._taking:
            self._records.append(sendable(record))

    def take(self) -> list[logging.LogRecord]:
        """Return the records since the last call."""
        with self._taking:
            records, self._records = self._records, []
        return records
