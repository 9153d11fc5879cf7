"""LoadPluginLibrary: compiled operators for a card, which the emulator cannot run (api 2.16)."""

from __future__ import annotations

from clipmlu.magicmind.emulator.log import log_refusal


class LoadPluginLibrary:
    """Loads a library of plugin operators (S#25141764009)."""

    def load(self, path: str, /) -> bool:
        """Refuse to load a library, log the reason, and return False; the public script asserts the result itself."""
        log_refusal(
            "LoadPluginLibrary.load",
            "UNIMPLEMENTED",
            f"'{path}' holds kernels for a card (BANG C), which no CPU runs; build the network of operators that the SDK "
            "has, or use a card",
        )
        return False
