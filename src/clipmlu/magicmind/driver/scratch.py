"""A temporary folder that is removed with its process, or by the next process."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import Any


class Scratch:
    """A folder of this process for files that do not outlive it; those of processes that were killed are removed before.

    A process holds the lock on a file in its folder as long as it lives.
    """

    def __init__(self) -> None:
        import fcntl  # not on Windows, where nothing is served

        self._sweep(fcntl)
        new = tempfile.mkdtemp(prefix=".clipmlu-worker-")
        self._lock = open(os.path.join(new, ".lock"), "wb")  # noqa: SIM115 - held until the end
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = os.path.join(os.path.dirname(new), os.path.basename(new)[1:])
        os.rename(new, self.path)  # only now can others find it

    def remove(self) -> None:
        """Remove it and all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()

    @staticmethod
    def _sweep(fcntl: Any) -> None:
        for name in os.listdir(tempfile.gettempdir()):
            folder = os.path.join(tempfile.gettempdir(), name)
            if not name.startswith("clipmlu-worker-"):
                continue
            with contextlib.suppress(OSError):
                if os.lstat(folder).st_uid != os.geteuid():
                    continue
                with open(os.path.join(folder, ".lock"), "rb") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)
