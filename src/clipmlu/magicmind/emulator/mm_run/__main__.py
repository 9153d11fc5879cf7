"""Runs the emulated tool: ``python -m clipmlu.magicmind.emulator.mm_run --magicmind_model FILE ...``."""

import sys

from clipmlu.magicmind.emulator.mm_run.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
