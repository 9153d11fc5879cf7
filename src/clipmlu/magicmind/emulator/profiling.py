"""Profiler and remote sessions: there, so that scripts that mention them import and run (api 2.14)."""

from __future__ import annotations

from clipmlu.magicmind.emulator.types import DeviceTracerLevel, HostTracerLevel


class ProfilerOptions:
    """What is traced (S#33358317571)."""

    def __init__(self, host_level: HostTracerLevel, device_level: DeviceTracerLevel) -> None:
        self.host_level = host_level
        self.device_level = device_level


class Profiler:
    """Traces nothing and says so by leaving the log directory alone; its answers are asserted for truth (same source)."""

    def __init__(self, options: ProfilerOptions, logdir: str) -> None:
        self.options = options
        self.logdir = logdir

    def start(self) -> bool:
        """Begin."""
        return True

    def step_begin(self, step: int, /) -> bool:
        """Mark a step's begin."""
        return True

    def step_end(self) -> bool:
        """Mark a step's end."""
        return True

    def stop(self) -> bool:
        """End."""
        return True


class IRpcSession:
    """A remote host (CV mm_infer.py); the emulator reaches none."""

    @staticmethod
    def rpc_connect(address: str, /) -> IRpcSession | None:
        """None: there is nobody to connect to."""
        return None
