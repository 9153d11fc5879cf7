"""Makes a zip application of a package: one file that runs without an installation of clipmlu.

The modules of such a package import each other relatively, and nothing else of clipmlu. The package has another name in
the archive, because a package ``clipmlu`` there would hide an installed one, such as the one that the emulated SDK
imports.
"""

from __future__ import annotations

import importlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

_SHEBANG = b"#!/usr/bin/env python3\n"
# Python 2 can parse it too, so that every interpreter gets one line instead of a traceback.
_MAIN = """\
import sys

if sys.version_info < (3, 7):
    sys.exit("this program needs Python 3.7 or newer; %s is %s" % (sys.executable, sys.version.split()[0]))
try:
    import numpy
except ImportError as error:
    sys.exit("this program needs NumPy, which %s cannot import: %s" % (sys.executable, error))

from {module} import {function}

sys.exit({function}())
"""


def package_files(package: str, name: str) -> dict[str, bytes]:
    """Read the sources of an installed package.

    Args:
        package: its dotted name, such as ``"clipmlu.magicmind.driver"``.
        name: its name in the archive, such as ``"clipmlu_worker"``.

    Returns:
        Maps each path inside an archive, such as ``"clipmlu_worker/wire.py"``, to its content.
    """
    module = importlib.import_module(package)
    assert module.__file__ is not None, "it is a package of ours, with an __init__.py"
    folder = Path(module.__file__).parent
    return {f"{name}/{path.relative_to(folder).as_posix()}": path.read_bytes() for path in sorted(folder.rglob("*.py"))}


def make_archive(files: Mapping[str, bytes], entry: str) -> bytes:
    """Make a zip application: ``python FILE``, or an executable FILE, calls a function and exits with its result.

    Equal files give equal bytes on every machine: order, times and modes are fixed, and nothing is compressed, because
    versions of zlib differ.

    The program ends with a message of one line on Python older than 3.7 or without NumPy.

    Args:
        files: maps each path inside the archive to its content; see ``package_files``.
        entry: the function to call without arguments, as ``"module:function"``.

    Returns:
        The content of the file.
    """
    module, _, function = entry.partition(":")
    whole = {**files, "__main__.py": _MAIN.format(module=module, function=function).encode()}
    stream = io.BytesIO()
    stream.write(_SHEBANG)
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for path in sorted(whole):
            member = zipfile.ZipInfo(path, date_time=(1980, 1, 1, 0, 0, 0))
            member.create_system = 3  # Unix, on every system
            member.external_attr = 0o100644 << 16
            archive.writestr(member, whole[path])
    return stream.getvalue()
