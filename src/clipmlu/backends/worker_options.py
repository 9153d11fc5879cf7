"""Which process holds a vendor's SDK, and how patient we are with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from clipmlu.arguments import check_fields
from clipmlu.errors import OptionError
from clipmlu.file_names import expand_home
from clipmlu.specs import PositiveInt


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """Which process holds the SDK, and how patient we are with it.

    Attributes:
        python: an interpreter that has ``magicmind`` and NumPy, started here; or
        address: ``unix:PATH`` or ``tcp:HOST:PORT`` of a worker that runs already.
        secret_file: file with the shared secret; else the variable CLIPMLU_WORKER_SECRET.
        environment: variables of a worker started here; None for this process's own.
        driver: the file to start; None for the package's own.
        run_seconds: longest wait for one batch, the first of a session included.
        open_seconds: longest wait for a session.
        start_seconds: longest wait for a connection, and for a worker started here to answer at all.
        greeting_seconds: the same for one that runs already; it lets a client wait while all its places are taken.
        max_failures: crashes, hangs and garbage in a row after which the batches in flight are given up.
        idle_seconds: a worker started here ends when nothing is asked for so long, and is started again when needed.
        shared_memory: pass arrays through memory where the connection allows it.
    """

    python: str | None = None
    address: str | None = None
    secret_file: str | None = None
    environment: Mapping[str, str] | None = None
    driver: Path | None = None
    run_seconds: float = 120.0
    open_seconds: float = 600.0
    start_seconds: float = 30.0
    greeting_seconds: float = 15.0
    max_failures: PositiveInt = 3
    idle_seconds: float = 900.0
    shared_memory: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("python", "secret_file", "address"):
            value = getattr(self, name)
            start = "unix:" if name == "address" else ""
            if value is not None and value.startswith(f"{start}~"):
                object.__setattr__(self, name, f"{start}{expand_home(value.removeprefix(start))}")
        if (self.python is None) == (self.address is None):
            raise OptionError("a worker is either an interpreter to start or an address to connect to")

    def __str__(self) -> str:
        return f"'{self.python}'" if self.address is None else f"'{self.address}'"
