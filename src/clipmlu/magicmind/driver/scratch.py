"""A temporary folder that is removed at the end of its process, or by the next process."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import Any


class Scratch:
    """A temporary folder of this process; folders of killed processes are removed first.

    A process holds the lock of a file in its folder as long as it runs.
    """

    def __init__(self) -> None:
        import fcntl  # not available on Windows, where no worker runs

        self._sweep(fcntl)
        new = tempfile.mkdtemp(prefix=".clipmlu-worker-")
        self._lock = open(os.path.join(new, ".lock"), "wb")  # noqa: SIM115 - held until the end
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.path = os.path.join(os.path.dirname(new), os.path.basename(new)[1:])
        os.rename(new, self.path)  # from now on other processes can find it

    def remove(self) -> None:
        """Remove the folder and its content."""
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
