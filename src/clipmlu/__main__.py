"""``python -m clipmlu`` runs the ``clipmlu`` command."""

from __future__ import annotations

import sys

from clipmlu.cli import main

sys.exit(main())
