"""The environment variables that locate the SDK."""

from __future__ import annotations

import os

from clipmlu.backends.worker_options import WorkerOptions

PYTHON_VARIABLE = "CLIPMLU_MLU_PYTHON"
WORKER_VARIABLE = "CLIPMLU_MLU_WORKER"
SECRET_FILE_VARIABLE = "CLIPMLU_WORKER_SECRET_FILE"  # noqa: S105 - the name of a variable


def worker_from_environment() -> WorkerOptions | None:
    """Return the worker in CLIPMLU_MLU_WORKER (an address) or CLIPMLU_MLU_PYTHON (an interpreter), or None."""
    address, python = os.environ.get(WORKER_VARIABLE), os.environ.get(PYTHON_VARIABLE)
    if address:
        return WorkerOptions(address=address, secret_file=os.environ.get(SECRET_FILE_VARIABLE))
    return WorkerOptions(python=python) if python else None
