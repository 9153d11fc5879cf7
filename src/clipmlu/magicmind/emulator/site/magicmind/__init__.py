"""The emulated package ``magicmind`` with the vendor's layout (api 1); ``clipmlu.magicmind.emulator`` implements it.

It does not use a card. ``clipmlu emulate`` puts the directory above this package on the path.
"""

import importlib.util
import sys
from pathlib import Path

EMULATED = True
"""Marks the emulated package; the vendor's package is not known to have this name."""

if importlib.util.find_spec("clipmlu") is None:
    # clipmlu runs from a source tree that this interpreter does not know: the tree is four directories up.
    sys.path.append(str(Path(__file__).resolve().parents[5]))
