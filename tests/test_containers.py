"""The Dockerfiles: what they copy, run and start exists, and their server works as a user without rights on a read-only root."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import support
from clipmlu.cli import cli
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.specs import Precision
from conftest import REPOSITORY
from dockerfiles import FOLDER, stages, values, words

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
    assert copied.split() == ["--from=clipmlu", words(build, "RUN")[-1], words(last, "ENTRYPOINT")[-1]]
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
    (extras,) = [line.partition("=")[2] for line in values(build, "ARG")]
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


@pytest.mark.slow
def test_the_image_can_be_built() -> None:
    daemon = shutil.which("docker") or shutil.which("podman")
    if daemon is None or subprocess.run([daemon, "info"], capture_output=True, check=False, timeout=60).returncode:
        pytest.skip("no daemon of docker or podman answers")
    build = [daemon, "build", "-f", str(CPU), "-t", "clipmlu-test", str(REPOSITORY)]
    subprocess.run(build, check=True, timeout=1800)
    shown = subprocess.run(
        [daemon, "run", "--rm", "--read-only", "clipmlu-test", "--version"], capture_output=True, text=True, check=True
    )
    assert shown.stdout.startswith("clipmlu")
