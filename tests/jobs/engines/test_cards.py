"""Jobs on emulated cards: which process has which card, and what happens when one is lost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.cli import main
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.jobs.engines.cards import Cards, choose_cards
from clipmlu.jobs.engines.options import THIS_PROCESS, EngineOptions
from clipmlu.magicmind.emulator import faults
from clipmlu.model import load


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> CompiledBundle:
    """The tiny model for the emulated card; not to be changed."""
    folder = tmp_path_factory.mktemp("cards")
    options = CompileOptions(target="emulated-mlu", batch_size=4, max_batch=8, check=False)
    return compile_bundle(support.write_exported(folder / "tiny"), folder / "tiny-mlu", options)


@pytest.fixture(autouse=True)
def _three_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    faults.reset()
    monkeypatch.setenv("CLIPMLU_EMULATOR_DEVICES", "3")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(64):
        support.picture(number).save(folder / f"{number:02}.png")
    return folder


def _run(bundle: CompiledBundle, images: Path, output: Path, *options: str) -> dict[str, bytes]:
    arguments = ["embed", str(bundle.path), str(images), "-o", str(output), "--shard-size", "8"]
    assert main([*arguments, *options]) == 0
    return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}


def test_lost_card_of_a_process_is_named_and_costs_no_row(
    card: CompiledBundle,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = _run(card, images, tmp_path / "serial")
    capsys.readouterr()
    # Whichever card comes to its second batch first: with the log it is only one, and one card gets at least eight.
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", "sync:2:device_lost")
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULT_LOG", str(tmp_path / "faults"))
    assert _run(card, images, tmp_path / "job", "--devices", "0,2", "--processes", "2") == expected
    [line] = [line for line in capsys.readouterr().err.splitlines() if "has lost" in line]
    assert re.match(r"worker process \d+ has lost card [02] with part-0000000\d", line)
    assert "which will be computed again; 1 other(s) go on: Bundle" in line


def test_lost_card_of_several_in_one_process_is_named_and_costs_no_row(
    card: CompiledBundle,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = _run(card, images, tmp_path / "serial")
    capsys.readouterr()
    faults.reset()  # calls of earlier runs count in this process
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", "sync:2:device_lost")  # whichever card has the second batch
    assert _run(card, images, tmp_path / "job", "--devices", "2,0") == expected
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if re.search("card [02] ", line.lower()) and "lost" in line]) == 1, lines
    assert [
        line for line in lines if line.startswith(f"Wrote 64 rows in 8 shard(s) to {tmp_path / 'job'} (emulated); ")
    ]


def test_loss_of_the_last_card_ends_the_job(
    card: CompiledBundle,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CLIPMLU_EMULATOR_FAULTS", "sync@0:2:device_lost,sync@2:2:device_lost")
    arguments = ["embed", str(card.path), str(images), "-o", str(tmp_path / "job"), "--shard-size", "8"]
    assert main([*arguments, "--devices", "0,2", "--processes", "2"]) == 1
    assert re.search(r"^clipmlu: Bundle .*: MagicMind failed: sync\(\): UNAVAILABLE", capsys.readouterr().err, re.M)


def test_cards_of_an_engine(card: CompiledBundle, compiled: CompiledBundle) -> None:
    two = EngineOptions(processes=2)
    local_ray = EngineOptions(engine="ray")
    cluster = EngineOptions(engine="ray", ray_address="auto")
    with load(card.path, devices="all") as model:
        assert choose_cards(model, THIS_PROCESS) is None
        assert choose_cards(model, two) == Cards(indices=(0, 1, 2))
        assert choose_cards(model, local_ray) == Cards(indices=(0, 1, 2))
        assert choose_cards(model, cluster) == Cards(indices=None)
    with load(card.path) as model:
        assert choose_cards(model, two) == Cards(indices=(0,))
        assert choose_cards(model, cluster) == Cards(indices=None)
    with load(card.path, devices=[2, 0]) as model:
        assert choose_cards(model, cluster) == Cards(indices=(2, 0))
    with load(compiled.path) as model:
        assert choose_cards(model, two) is None
        assert choose_cards(model, cluster) is None


def test_a_card_is_locked_until_its_process_ends(tmp_path: Path) -> None:
    """Another process holds card 1 of three."""
    code = "import sys; from clipmlu.jobs.engines.cards import lock_card; print(lock_card([1]), flush=True); sys.stdin.read()"
    script = (
        "from clipmlu.jobs.engines.cards import lock_card; print([lock_card([0, 1, 2], wait_seconds=0) for _ in 'ab'])"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "1\n"
        taken = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        assert taken.stdout == "[0, 2]\n"
        refused = subprocess.run(
            [sys.executable, "-c", code.replace("[1]", "[1], wait_seconds=0")],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert "All cards of this machine (1) are used by other workers of clipmlu." in refused.stderr
        holder.kill()
    freed = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    )
    assert freed.stdout == "1\n"
