"""The choice of an engine."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

from clipmlu.arguments import check_fields
from clipmlu.errors import OptionError
from clipmlu.host import require_installed
from clipmlu.specs import PositiveInt

EngineName = Literal["local", "ray"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Where the workers of a job run.

    Attributes:
        engine: ``local`` for this machine, ``ray`` for a Ray cluster.
        processes: number of worker processes; None for one on this machine, and with Ray for one per card, or one per
            machine if the bundle runs on the CPU.
        ray_address: address of a running cluster: ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``; None to start Ray on
            this machine for the time of the job.
    """

    engine: EngineName = "local"
    processes: PositiveInt | None = None
    ray_address: str | None = None

    @property
    def is_this_process(self) -> bool:
        """Whether the only worker is the process that runs the job."""
        return self.engine == "local" and self.processes in (None, 1)

    def check_installed(self) -> None:
        """Check that the engine can be imported, before anything is computed or written.

        Raises:
            MissingDependencyError: Ray is chosen and not installed.
        """
        if self.engine == "ray":
            require_installed("ray", "ray", "--engine ray")

    def __post_init__(self) -> None:
        """Check the fields.

        Raises:
            OptionError: a field has another type, or an address is given without Ray.
        """
        check_fields(self)
        if self.ray_address is not None and self.engine != "ray":
            raise OptionError(
                f"the Ray address is '{self.ray_address}', but the engine is {self.engine}; add --engine ray"
            )
        if self.ray_address is not None and not self.ray_address.strip():
            raise OptionError("the Ray address is empty; expected auto, HOST:PORT or ray://HOST:PORT")


THIS_PROCESS = EngineOptions()
"""No other process."""
