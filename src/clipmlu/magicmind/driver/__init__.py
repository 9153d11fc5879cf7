"""All calls into the vendor's SDK, and the worker that makes them in another process; runs on Python 3.7 with NumPy."""

FILE_NAME = "clipmlu_worker.pyz"
