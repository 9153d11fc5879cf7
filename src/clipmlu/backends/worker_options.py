"""Options of the process that holds a vendor's SDK: its location and time limits."""

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
    """Options of a worker, the process that holds the SDK; give either ``python`` or ``address``.

    Attributes:
        python: an interpreter with ``magicmind`` and NumPy, which is started as the worker.
        address: ``unix:PATH`` or ``tcp:HOST:PORT`` of a running worker.
        secret_file: file with the shared secret; None for the variable CLIPMLU_WORKER_SECRET.
        environment: environment variables of a started worker; None for those of this process.
        driver: the file to start; None for the package's own.
        run_seconds: time limit for one batch, including the first of a session.
        open_seconds: time limit for opening a session.
        start_seconds: time limit for a connection, and for the first answer of a started worker.
        greeting_seconds: time limit for the first answer of a running worker; it delays clients while it is full.
        max_failures: number of consecutive crashes, hangs or invalid answers after which batches in flight fail.
        idle_seconds: a started worker ends after this time without requests and is started again when needed.
        shared_memory: pass arrays through shared memory if the connection supports it.
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
