"""Reports hold the command that made them, as a shell would run it again."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from clipmlu.backends.provenance import Command
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.cli import main
from clipmlu.file_names import name_from_path


def test_a_report_holds_the_words_and_the_variables_of_its_command(
    compiled: CompiledBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(compiled.path, "my bundle")
    monkeypatch.setenv("CLIPMLU_WORKERS", "1")
    monkeypatch.setenv("CLIPMLU_THREADS", "9")  # the option wins
    words = ["eval", "my bundle", "--dataset", "demo", "--samples", "3", "--threads", "1", "--output", "a.json"]
    assert main(words) == 0
    command = json.loads(Path("a.json").read_text())["command"]
    assert command == {"arguments": ["clipmlu", *words], "environment": {"CLIPMLU_WORKERS": "1"}}
    text = str(Command(**command))
    assert text.startswith("CLIPMLU_WORKERS=1 clipmlu eval 'my bundle' --dataset demo ")
    assert shlex.split(text) == ["CLIPMLU_WORKERS=1", "clipmlu", *words]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "word",
    [
        b"plain",
        b'it\'s a "q" $HOME `id` \\n !',
        "中文 👩‍🔧".encode(),
        "\u202eturned'\u2066".encode(),
        b"line\nbreak\tand \x1b[31m",
        b"latin \xe9\\x41",
    ],
)
def test_a_pasted_command_gives_the_shell_the_bytes_of_each_word(word: bytes) -> None:
    text = name_from_path(os.fsdecode(word))
    command = Command(arguments=("printf", "%s", text), environment={"WORD": text})
    line = str(command)
    assert line.isprintable()
    assert subprocess.run(["bash", "-c", line], stdout=subprocess.PIPE, check=True).stdout == word
    shown = Command(arguments=("env",), environment={"WORD": text})
    assert b"WORD=" + word in subprocess.run(["bash", "-c", str(shown)], stdout=subprocess.PIPE, check=True).stdout


def test_a_word_that_is_no_name_stays_as_it_is() -> None:
    assert str(Command(arguments=("a\\b",), environment={})) == "'a\\b'"
