"""Profiler and remote sessions without function, so that scripts that use them can run (api 2.14)."""

from __future__ import annotations

from clipmlu.magicmind.emulator.types import DeviceTracerLevel, HostTracerLevel


class ProfilerOptions:
    """Levels of tracing (S#33358317571)."""

    def __init__(self, host_level: HostTracerLevel, device_level: DeviceTracerLevel) -> None:
        self.host_level = host_level
        self.device_level = device_level


class Profiler:
    """A profiler that traces nothing and writes no files; scripts assert its return values (same source)."""

    def __init__(self, options: ProfilerOptions, logdir: str) -> None:
        self.options = options
        self.logdir = logdir

    def start(self) -> bool:
        """Start the profiler."""
        return True

    def step_begin(self, step: int, /) -> bool:
        """Mark the beginning of a step."""
        return True

    def step_end(self) -> bool:
        """Mark the end of a step."""
        return True

    def stop(self) -> bool:
        """Stop the profiler."""
        return True


class IRpcSession:
    """A remote host (CV mm_infer.py); the emulator can connect to none."""

    @staticmethod
    def rpc_connect(address: str, /) -> IRpcSession | None:
        """Return None: there is no remote host."""
        return None
