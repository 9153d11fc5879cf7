"""All calls into the vendor's SDK: building and running models, and serving both to another process.

This package runs on the machine with the SDK: Python 3.7, its standard library, NumPy and ``magicmind``. clipmlu imports it if
``magicmind`` is importable, starts it in another interpreter, or connects to a copy of it in a container or on another host.
The copy is one file, a zip application that ``clipmlu worker --write PATH`` writes. In it this package has another name, so its
modules import each other relatively, and nothing else of clipmlu.

The driver does not depend on undocumented behaviour of the SDK ("api 7.n" is section 7 of ``docs/magicmind-api.md``): arrays that
it passes are contiguous, of exactly the declared type, within the range that the model was built for, and unchanged until
``sync``; results are copied before anything else is enqueued; every run gets a new outputs list; all calls of a process come from
one thread; a context uses its own queue only.
"""

FILE_NAME = "clipmlu_worker.pyz"
"""Name of the file that ``clipmlu worker --write`` writes into a folder."""
