"""Runs the emulated tool: ``python -m clipmlu.magicmind.emulator.mm_run --magicmind_model FILE ...``."""

import signal
import sys

from clipmlu.magicmind.emulator.mm_run.command import main

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends the tool as it ends the vendor's, threads included
    sys.exit(main(sys.argv[1:]))
