"""``mm.resources``: a local device, as opposed to a remote one (CV mm_infer.py)."""

from clipmlu.magicmind.emulator.devices import Device

__all__ = ["Device"]
