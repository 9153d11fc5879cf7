"""The one file that is made of a package."""

from __future__ import annotations

import binascii
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from clipmlu.magicmind.archive import make_archive, package_files

PACKAGE = {
    "tool/__init__.py": b"",
    "tool/command.py": b"import sys\n\nfrom .sums import double\n\n\ndef main():\n    print(double(sys.argv[1]))\n    return 3\n",
    "tool/sums.py": b"def double(text):\n    return 2 * int(text)\n",
}
MAIN = b"""\
import sys

if sys.version_info < (3, 7):
    sys.exit("this program needs Python 3.7 or newer; %s is %s" % (sys.executable, sys.version.split()[0]))
try:
    import numpy
except ImportError as error:
    sys.exit("this program needs NumPy, which %s cannot import: %s" % (sys.executable, error))

from tool.command import main

sys.exit(main())
"""


def zip_of(members: dict[str, bytes], prefix: bytes) -> bytes:
    """A zip file by its specification (APPNOTE 6.3, sections 4.3.7 to 4.3.16): stored members of 1 January 1980, files of mode 644."""
    whole, listed = prefix, b""
    for name, content in members.items():
        offset, path = len(whole), name.encode()
        fields = struct.pack("<HHHHHIIIHH", 20, 0, 0, 0, 33, binascii.crc32(content), *[len(content)] * 2, len(path), 0)
        whole += b"PK\3\4" + fields + path + content
        made_on_unix = struct.pack("<H", 3 << 8 | 20)
        listed += b"PK\1\2" + made_on_unix + fields + struct.pack("<HHHII", 0, 0, 0, 0o100644 << 16, offset) + path
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(listed), len(whole), 0)
    return whole + listed + b"PK\5\6" + end


@pytest.mark.parametrize("files", [PACKAGE, dict(reversed(PACKAGE.items()))], ids=["in order", "in another order"])
def test_bytes_follow_from_the_sources_alone(files: dict[str, bytes]) -> None:
    expected = zip_of({"__main__.py": MAIN, **PACKAGE}, b"#!/usr/bin/env python3\n")
    assert make_archive(files, "tool.command:main") == expected


def test_archive_runs_as_a_file_and_by_an_interpreter_and_exits_with_the_result(tmp_path: Path) -> None:
    written = tmp_path / "tool.pyz"
    written.write_bytes(make_archive(PACKAGE, "tool.command:main"))
    written.chmod(0o755)
    for command in ([str(written), "21"], [sys.executable, "-I", str(written), "21"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (3, "42\n", "")


def test_sources_of_a_package_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "archived_package" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_bytes(b"")
    (inner.parent / "one.py").write_bytes("x = 'é'\r\n".encode())
    (inner / "__init__.py").write_bytes(b"'''in a folder'''\n")
    (inner / "notes.txt").write_bytes(b"no source")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    assert package_files("archived_package", "other") == {
        "other/__init__.py": b"",
        "other/inner/__init__.py": b"'''in a folder'''\n",
        "other/one.py": "x = 'é'\r\n".encode(),
    }
