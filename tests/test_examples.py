"""Each program in ``examples/`` runs, and its result is that of the command line."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clipmlu
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.cli import main
from conftest import REPOSITORY
from support import picture

EXAMPLES = REPOSITORY / "examples"
LABELS = "cat,dog,a tree"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images, named by their number."""
    images = tmp_path / "photos"
    images.mkdir()
    for number in range(5):
        picture(number).save(images / f"{number}.png")
    return images


def _run(name: str, *arguments: object) -> tuple[int, str]:
    """Run an example in this process; returns its exit code and what it printed."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert end.value.code is None or isinstance(end.value.code, int), end.value.code
    return end.value.code or 0, out.getvalue()


def _classes(bundle: CompiledBundle, images: list[Path]) -> list[str]:
    with clipmlu.load(bundle.path) as model:
        return [found.class_name for found in model.classifier(LABELS).predict(images)]


def test_a_folder_is_classified_without_the_text_tower(compiled: CompiledBundle, folder: Path, tmp_path: Path) -> None:
    expected = _classes(compiled, sorted(folder.iterdir()))
    with clipmlu.load(compiled.path) as model:
        model.classifier(LABELS).save(tmp_path / "labels.clf")
    (folder / "9.png").write_bytes(b"no image")
    (compiled.path / compiled.manifest.towers["text"].file).rename(tmp_path / "away")
    code, out = _run("classify_folder.py", compiled.path, tmp_path / "labels.clf", folder)
    assert code == 1
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["class"] for row in rows] == [*expected, ""]
    assert [bool(row["error"]) for row in rows] == [False] * 5 + [True]


def test_the_camera_loop_names_the_frames_of_a_folder(compiled: CompiledBundle, folder: Path) -> None:
    code, out = _run("camera_loop.py", compiled.path, folder, LABELS)
    assert code == 0
    images = sorted(folder.iterdir())
    assert out.splitlines()[0].startswith(f"frame 0: {_classes(compiled, images[:1])[0]} ")
    assert len(out.splitlines()) <= len(images)


def test_the_camera_loop_turns_the_channels_of_opencv(
    compiled: CompiledBundle, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A capture that gives the pictures as OpenCV does: blue first."""
    names = sorted(folder.iterdir())
    frames = [np.asarray(picture(number).convert("RGB"))[:, :, ::-1] for number in range(5)]

    class VideoCapture:
        def __init__(self, source: object) -> None:
            assert source == 0
            self.waiting = list(frames)

        def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
            return True

        def read(self) -> tuple[bool, object]:
            return (True, self.waiting.pop(0)) if self.waiting else (False, None)

        def release(self) -> None:
            self.waiting = []

    fake = type(sys)("cv2")
    fake.VideoCapture = VideoCapture  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cv2", fake)
    assert _run("camera_loop.py", compiled.path, "0", LABELS) == _run(
        "camera_loop.py", compiled.path, names[0].parent, LABELS
    )


@pytest.fixture
def service(compiled: CompiledBundle) -> Iterator[str]:
    """The address of a service in a thread of this process."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra serve")
    pytest.importorskip("fastapi", reason="needs the extra serve")
    configuration = uvicorn.Config(
        clipmlu.create_app(compiled.path, labels=LABELS), host="127.0.0.1", port=0, log_level="error"
    )
    server = uvicorn.Server(configuration)
    listening = configuration.bind_socket()
    listening.listen()  # a client that comes before the server waits
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_the_client_of_a_service_prints_the_classes(compiled: CompiledBundle, folder: Path, service: str) -> None:
    images = sorted(folder.iterdir())
    code, out = _run("service_client.py", service, *images)
    assert code == 0
    assert [line.split(": ")[1].rpartition(" ")[0] for line in out.splitlines()] == _classes(compiled, images)


def test_the_client_ends_with_the_message_of_the_service(service: str, folder: Path) -> None:
    with pytest.raises(AssertionError, match="404: "):
        _run("service_client.py", f"{service}/nowhere", folder / "0.png")


@pytest.mark.ray
@pytest.mark.slow
def test_the_ray_job_embeds_and_finds_duplicates(compiled: CompiledBundle, folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    pytest.importorskip("pyarrow", reason="needs the extra bulk")
    (folder / "copy.png").write_bytes((folder / "0.png").read_bytes())
    code, out = _run("ray_job.py", compiled.path, folder, tmp_path / "out")
    assert code == 0
    assert out.splitlines()[-1] == "6 images embedded"
    assert any("0.png and" in line and "copy.png: 1.000" in line for line in out.splitlines())


def test_the_magicmind_script_runs_on_the_emulated_sdk(exported: ExportedBundle, tmp_path: Path) -> None:
    assert main(["lower", str(exported.path), "--for", "mlu", "-o", str(tmp_path / "onnx"), "--quiet"]) == 0
    program = [sys.executable, "-m", "clipmlu", "emulate", "--", sys.executable, str(EXAMPLES / "magicmind_script.py")]
    result = subprocess.run([*program, str(tmp_path / "onnx")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    described = json.loads((tmp_path / "onnx" / "lowered.json").read_text())
    assert "lengths 1.0000 to 1.0000" in result.stdout
    assert f"output (4, {exported.manifest.embedding_dim})" in result.stdout, described


def test_the_list_of_examples_names_each() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert [name for name in sorted(files) if f"({name})" not in text] == []
