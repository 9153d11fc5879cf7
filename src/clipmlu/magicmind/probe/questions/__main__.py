"""Runs the installed package as a program; see ``command``."""

import sys

from .command import main

sys.exit(main())
