"""The Dockerfiles: what they copy, run and start exists; where docker or podman answers, the images are built and run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import support
from clipmlu.cli import cli
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.magicmind.client.program import worker_digest
from clipmlu.specs import Precision
from conftest import REPOSITORY
from dockerfiles import FOLDER, stages, values, words
from http_client import png

CPU, MLU = FOLDER / "cpu.Dockerfile", FOLDER / "mlu.Dockerfile"
USER = "65532"
READ_ONLY_ROOT = REPOSITORY / "tests" / "read_only_root.sh"


@pytest.mark.parametrize("path", [CPU, MLU], ids=lambda path: path.name)
def test_an_image_runs_one_program_as_a_user_without_rights(path: Path) -> None:
    last = stages(path)[-1]
    assert values(last, "USER") == [f"{USER}:{USER}"]
    assert values(last, "STOPSIGNAL") == ["SIGTERM"]
    assert len(words(last, "ENTRYPOINT")) + len(words(last, "CMD")) > 2
    assert not [command for command in values(last, "RUN") if "apt-get" in command or "pip" in command]


def test_the_image_starts_a_server_that_its_health_check_asks() -> None:
    last = stages(CPU)[-1]
    assert words(last, "ENTRYPOINT") == ["clipmlu"]
    name, *arguments = words(last, "CMD")
    context = cli.commands[name].make_context(
        name, arguments, parent=cli.make_context("clipmlu", [], resilient_parsing=True)
    )
    assert context.params["bundles"] == ("model=/models",)
    assert str(context.params["api_key_file"]) == "/run/secrets/clipmlu-api-key"
    assert f"//127.0.0.1:{context.params['port']}/health" in words(last, "HEALTHCHECK")[-1]
    assert values(last, "EXPOSE") == [str(context.params["port"])]


def test_the_worker_is_written_and_started_where_it_is_looked_for() -> None:
    build, last = stages(MLU)
    assert words(build, "RUN")[:-1] == ["clipmlu", "worker", "--write"]
    (copied,) = values(last, "COPY")
    assert copied.split() == ["--from=clipmlu", "--chown=0:0", words(build, "RUN")[-1], words(last, "ENTRYPOINT")[-1]]
    assert words(last, "ENTRYPOINT")[0] == "python3.7"
    assert words(last, "CMD") == ["--serve", f"unix:{values(last, 'WORKDIR')[0]}/mlu.sock"]


def test_a_builder_gets_what_the_wheel_is_made_of_and_nothing_else() -> None:
    build, _last = stages(CPU)
    copied = {name for line in values(build, "COPY") for name in line.split()[:-1]}
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    project, built = pyproject["project"], pyproject["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", "src", project["readme"], *project["license-files"], built["hooks"]["custom"]["path"]}
    assert needed <= copied
    assert all((REPOSITORY / name).exists() for name in copied)
    (extras,) = [line.partition("=")[2] for line in values(build, "ARG") if line.startswith("EXTRAS=")]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])


@pytest.fixture(params=["1", "0"], ids=["with a folder for files", "without any"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], list[str]]]:
    """The server of the CPU's image as process 1 of a root of its own, and the command of its health check."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("a root of its own needs root, unshare and setpriv")
    exported = support.write_exported(tmp_path / "tiny")
    bundle = compile_bundle(
        exported, tmp_path / "bundle", CompileOptions(target="cpu", precision=Precision.FORCE_FLOAT32)
    )
    key, root = tmp_path / "key", tmp_path / "root"
    key.write_text("a key of sixteen characters".replace(" ", "-"))
    root.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    last = stages(CPU)[-1]
    health = [sys.executable, *(word.replace("8000", port) for word in words(last, "HEALTHCHECK")[1:])]
    places = {"model=/models": f"model={bundle.path}", "/run/secrets/clipmlu-api-key": str(key)}
    command = [str(Path(sys.executable).with_name("clipmlu")), *(places.get(word, word) for word in words(last, "CMD"))]
    modules = {folder for folder in sys.path if os.path.isdir(folder)}
    seen = sorted({sys.base_prefix, sys.prefix, *modules, str(REPOSITORY / "src"), str(bundle.path), str(key)})
    environment = {"PATH": os.environ["PATH"], "HOME": "/tmp", "CLIPMLU_CACHE_DIR": "/tmp/clipmlu"}
    isolated = ["sh", str(READ_ONLY_ROOT), str(root), USER, request.param, *seen, "--"]
    with subprocess.Popen([*isolated, *command, "--labels", "cat,dog", "--port", port], env=environment) as process:
        try:
            yield process, health
        finally:
            process.kill()


@pytest.mark.slow
def test_the_server_of_the_image_is_healthy_on_a_read_only_root(
    server: tuple[subprocess.Popen[bytes], list[str]],
) -> None:
    process, health = server
    for _ in range(100):
        asked = subprocess.run(health, capture_output=True, text=True, check=False)
        if asked.returncode == 0:
            break
        assert process.poll() is None, "the server ended"
        time.sleep(0.2)
    assert asked.returncode == 0, asked.stderr
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
    status = Path(f"/proc/{children[0]}/status").read_text(encoding="ascii")
    assert f"\nUid:\t{USER}\t{USER}\t{USER}\t{USER}\n" in status
    assert "\nCapEff:\t0000000000000000\n" in status
    os.kill(int(children[0]), signal.SIGTERM)
    assert process.wait(30) == 143


@pytest.fixture(scope="module")
def engine() -> str:
    """A program that builds and runs images, if it has the base image of the CPU's or can fetch it."""
    base = next(line.partition("=")[2] for line in CPU.read_text(encoding="utf-8").splitlines() if "BASE=" in line)
    programs = filter(None, map(shutil.which, ("docker", "podman")))  # a client may be there without its daemon
    asked = ((each, subprocess.run([each, "info"], capture_output=True, check=False, timeout=60)) for each in programs)
    found = next((each for each, answer in asked if answer.returncode == 0), None)
    if found is None:
        pytest.skip("neither docker nor podman answers")
    if all(subprocess.run([found, *get, base], check=False).returncode for get in (["image", "inspect"], ["pull"])):
        pytest.skip(f"there is no image {base}, and it cannot be fetched")
    return found


@pytest.fixture(scope="module")
def image(engine: str) -> Iterator[str]:
    docker_format = ["--format", "docker"] if "podman" in engine else []  # OCI's has no health check
    subprocess.run(
        [engine, "build", *docker_format, "-f", str(CPU), "-t", "clipmlu-test", str(REPOSITORY)],
        check=True,
        timeout=1800,
    )
    yield "clipmlu-test"
    subprocess.run([engine, "rmi", "-f", "clipmlu-test-worker", "clipmlu-test-base", "clipmlu-test"], check=False)


def run_image(engine: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    isolated = ["--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    return subprocess.run(
        [engine, "run", *isolated, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.mark.slow
def test_the_built_image_serves_a_mounted_bundle(engine: str, image: str, tmp_path: Path) -> None:
    exported = support.write_exported(tmp_path / "tiny")
    options = CompileOptions(target="cpu", precision=Precision.FORCE_FLOAT32)
    bundle = compile_bundle(exported, tmp_path / "bundle", options).path
    key = tmp_path / "key"
    key.write_text("a-key-of-sixteen-characters")
    mounts = ["-v", f"{key}:/run/secrets/clipmlu-api-key:ro"]
    missing = run_image(engine, "--rm", *mounts, image)
    assert missing.returncode == 1
    assert missing.stderr.strip().splitlines()[-1].startswith("clipmlu: No bundle at '/models'")
    name = f"clipmlu-test-{os.getpid()}"
    started = run_image(
        engine, "-d", "--name", name, "-p", "127.0.0.1::8000", *mounts, "-v", f"{bundle}:/models:ro", image
    )
    try:
        assert started.returncode == 0, started.stderr
        health = [engine, "exec", name, *words(stages(CPU)[-1], "HEALTHCHECK")]
        support.wait_until(lambda: subprocess.run(health, capture_output=True, check=False).returncode == 0, 60)
        shown = subprocess.run([engine, "exec", name, "id", "-u"], capture_output=True, text=True, check=True)
        assert shown.stdout.strip() == USER
        port = subprocess.run([engine, "port", name, "8000"], capture_output=True, text=True, check=True).stdout.strip()
        request = urllib.request.Request(
            f"http://{port}/v1/embed", png(3), {"Content-Type": "image/png", "X-API-Key": key.read_text()}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            (embedding,) = json.load(response)["image_embeddings"]
        expected = support.embed_images(support.preprocess(support.picture(3))[None])
        np.testing.assert_allclose([embedding], expected, atol=1e-6)
        subprocess.run([engine, "kill", "--signal", "STOP", name], check=True)
        assert subprocess.run(health, capture_output=True, check=False).returncode != 0
        subprocess.run([engine, "kill", "--signal", "CONT", name], check=True)
        subprocess.run([engine, "stop", "--time", "30", name], check=True)
        code = subprocess.run([engine, "wait", name], capture_output=True, text=True, check=True)
        assert code.stdout.strip() == "143"
    finally:
        subprocess.run([engine, "rm", "-f", name], check=False)


@pytest.mark.slow
def test_the_built_worker_starts_in_an_image_with_numpy(engine: str, image: str, tmp_path: Path) -> None:
    """The base stands for the vendor's image: a Python that is found as python3.7, NumPy, and no SDK."""
    (tmp_path / "Dockerfile").write_text(f"FROM {image}\nUSER 0\nRUN ln -s python /opt/clipmlu/bin/python3.7\n")
    subprocess.run([engine, "build", "-t", "clipmlu-test-base", str(tmp_path)], check=True, timeout=300)
    build = [
        engine,
        "build",
        "-f",
        str(MLU),
        "--build-arg",
        "BASE=clipmlu-test-base",
        "--build-arg",
        f"CLIPMLU={image}",
    ]
    subprocess.run([*build, "-t", "clipmlu-test-worker", str(REPOSITORY)], check=True, timeout=300)
    done = run_image(engine, "--rm", "clipmlu-test-worker", "--info")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["driver"] == worker_digest()
    assert "No module named 'magicmind'" in facts["problem"]
