"""The emulated package ``magicmind``, laid out as the vendor's (api 1); everything in it comes from ``clipmlu.magicmind.emulator``.

Nothing here is a card. The directory above this package is put on the path by ``clipmlu emulate``.
"""

import importlib.util
import sys
from pathlib import Path

EMULATED = True
"""No such name is known of the vendor's package: whoever asks for it finds out what this is."""

if importlib.util.find_spec("clipmlu") is None:
    # clipmlu runs from a source tree that this interpreter does not know: it lies four directories up.
    sys.path.append(str(Path(__file__).resolve().parents[5]))
