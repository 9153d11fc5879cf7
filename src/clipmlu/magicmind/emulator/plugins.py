"""LoadPluginLibrary: compiled operators for a card, which the emulator cannot run (api 2.16)."""

from __future__ import annotations

import logging

_log = logging.getLogger("clipmlu.magicmind.emulator")


class LoadPluginLibrary:
    """Loads a library of plugin operators (S#25141764009)."""

    def load(self, path: str, /) -> bool:
        """Refuse to load a library, log the reason, and return False; the public script asserts the result itself."""
        _log.error(
            "emulated MagicMind: LoadPluginLibrary.load: '%s' holds kernels for a card (BANG C), which no CPU runs; "
            "build the network of operators that the SDK has, or use a card",
            path,
        )
        return False
