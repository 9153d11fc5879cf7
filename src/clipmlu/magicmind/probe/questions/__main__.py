"""``python -m`` of the probes; see ``command``."""

import sys

from .command import main

sys.exit(main())
