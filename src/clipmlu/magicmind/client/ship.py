"""Writing the driver's copy for the place where the SDK is."""

from __future__ import annotations

from pathlib import Path

from clipmlu.files.publish import output_errors, write_file
from clipmlu.magicmind.client.options import DRIVER_FILE

FILE_NAME = "clipmlu_worker.py"


def write_worker(path: Path, *, overwrite: bool = False) -> Path:
    """Write the driver to a file, whole or not at all, and make it executable.

    Args:
        path: the file, or a directory to put ``clipmlu_worker.py`` into.
        overwrite: replace a file that is there.

    Returns:
        The file.

    Raises:
        OutputExistsError: there is one, and ``overwrite`` is off.
        OutputError: it cannot be written.
    """
    target = path / FILE_NAME if path.is_dir() else path
    write_file(target, DRIVER_FILE.read_bytes(), overwrite=overwrite)
    with output_errors(target):
        target.chmod(0o755)
    return target
