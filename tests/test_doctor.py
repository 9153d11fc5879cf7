"""What ``doctor`` finds, with the machine arranged."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import tomllib
from importlib import metadata
from pathlib import Path

import PIL
import pytest

from clipmlu.cli import main
from clipmlu.doctor import Finding, examine
from clipmlu.measure.speed.host_rate import prepared_per_core_second
from conftest import REPOSITORY
from fake_packages import install_sdk
from screen import missing, on_terminal

DEVELOPERS = {"docs", "lint", "test"}
"""The extras that only developers of this package need."""


class _NoSdk:
    """An importer that finds no package ``magicmind``, not even an installed one."""

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name == "magicmind":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of Cambricon's, whatever is on the machine that runs the tests."""
    for name in ("CLIPMLU_MLU_PYTHON", "CLIPMLU_MLU_WORKER", "NEUWARE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "no-programs"))
    monkeypatch.setattr(sys, "meta_path", [_NoSdk(), *sys.meta_path])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What stands for ``/``; nothing is there."""
    return tmp_path / "root"


def _findings(root: Path, monitor_seconds: float = 10.0) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(root=root, monitor_seconds=monitor_seconds)}


def _problems(found: dict[str, Finding]) -> list[Finding]:
    return [finding for finding in found.values() if finding.status == "problem"]


def test_absent_card_and_extra_are_no_problem(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    for module in ("torch", "open_clip", "onnxscript", "transformers"):
        monkeypatch.setitem(sys.modules, module, None)
    found = _findings(root)
    assert found["MLU card"].status == "optional"
    assert found["extra export"] == Finding(
        check="extra export",
        status="optional",
        found="absent: torch, open_clip, onnxscript, transformers",
        remedy="needed by 'clipmlu export': pip install 'clipmlu[export]'",
    )
    assert _problems(found) == []


def test_every_extra_has_a_line(root: Path) -> None:
    formats = {"heif", "jpeg"}  # image formats have lines of their own
    found = {check.removeprefix("extra ") for check in _findings(root) if check.startswith("extra ")}
    assert found == _extras().keys() - formats - {"all"} - DEVELOPERS


def test_extra_all_has_every_extra_for_users() -> None:
    (everything,) = _extras()["all"]
    names = everything.removeprefix("clipmlu[").removesuffix("]").split(",")
    assert names == sorted(_extras().keys() - {"all"} - DEVELOPERS)


def _extras() -> dict[str, list[str]]:
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    extras: dict[str, list[str]] = pyproject["project"]["optional-dependencies"]
    return extras


def test_resize_kernel_is_reported_with_pillows_version(root: Path) -> None:
    finding = _findings(root)["image resize"]
    assert f"Pillow {PIL.__version__} (" in finding.found
    if finding.status == "ok":
        assert finding.found.startswith("compiled kernel (")
        assert finding.remedy == ""
    else:  # it is not compiled where the tests run
        assert finding.found.endswith("without the compiled kernel")
        assert "python -m clipmlu.data.resize.build" in finding.remedy


def test_decoder_of_jpegs_is_named(root: Path) -> None:
    pytest.importorskip("simplejpeg", reason="needs the extra jpeg")
    finding = _findings(root)["JPEG decoding"]
    assert finding.status == "ok"
    assert finding.found.startswith(f"simplejpeg {metadata.version('simplejpeg')} for 4:4:4, 4:2:2, 4:2:0")
    assert f"Pillow {metadata.version('pillow')}" in finding.found


def _put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_card_is_found_by_its_device_file(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    _put(root, "dev/cambricon_dev0", "dev/cambricon_ctl")
    install_sdk(monkeypatch, root)
    found = _findings(root)
    assert found["MLU card"] == Finding(check="MLU card", status="ok", found="cambricon_dev0")
    assert found["MagicMind SDK"].status == "ok"


def test_card_without_an_sdk_is_a_problem(root: Path) -> None:
    _put(root, "dev/cambricon_dev0", "dev/cambricon_dev1", "dev/cambricon_ctl")
    finding = _findings(root)["MLU card"]
    assert finding.status == "problem"
    assert finding.found == "cambricon_dev0, cambricon_dev1"
    assert "CLIPMLU_MLU_PYTHON" in finding.remedy


def test_card_without_its_control_device_or_access_says_so(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    _put(root, "dev/cambricon_dev0")
    install_sdk(monkeypatch, root)
    assert "cambricon_ctl" in _findings(root)["MLU card"].remedy
    monkeypatch.setattr(os, "access", lambda _path, _mode: False)
    finding = _findings(root)["MLU card"]
    assert (finding.status, finding.found) == ("problem", "cambricon_dev0; no access")


def test_bare_machine_has_no_problem_and_names_what_is_optional(root: Path) -> None:
    found = _findings(root)
    names = ("target mlu", "MLU card", "MLU driver", "cnmon", "NEUWARE_HOME", "MagicMind SDK", "MLU worker")
    assert {name: found[name].status for name in names} == dict.fromkeys(names, "optional")
    assert "CLIPMLU_MLU_PYTHON" in found["target mlu"].remedy
    assert found["target emulated-mlu"].status == "ok"
    assert found["target emulated-mlu"].found.startswith("emulated")
    assert "not a card" in found["target emulated-mlu"].found
    assert _problems(found) == []


@pytest.mark.parametrize(
    ("version", "status"), [("4.20.6", "ok"), ("v5.10.22", "ok"), ("4.20.5", "problem"), ("4.9.13", "problem")]
)
@pytest.mark.parametrize("place", ["module", "proc"])
def test_driver_version_is_compared_with_the_oldest_that_is_known_to_do(
    root: Path, version: str, status: str, place: str
) -> None:
    if place == "module":
        file = root / "sys" / "module" / "cambricon_drv" / "version"
        text = f"{version}\n"
    else:
        file = root / "proc" / "driver" / "cambricon" / "mlus" / "0" / "information"
        text = f"Device name: MLU370\nDriver Version : {version}\nFirmware: 1.1.4\n"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    finding = _findings(root)["MLU driver"]
    assert (finding.status, finding.found) == (status, version.removeprefix("v"))


def test_driver_that_says_nothing_of_its_version_is_no_problem(root: Path) -> None:
    _put(root, "proc/driver/cambricon/noise")
    (root / "proc/driver/cambricon/noise").write_bytes(b"\xff\xfe 1.2.3")
    assert _findings(root)["MLU driver"].found == "loaded; version not known"


@pytest.mark.parametrize(
    ("script", "status", "found"),
    [
        ("echo CNMON v5.10; exit 0", "ok", "CNMON v5.10"),
        ('[ "$1" = info ] && echo MLU370-S4 && exit 0; exit 2', "ok", "MLU370-S4"),
        ("echo no driver >&2; exit 1", "problem", "no driver"),
        ("exit 7", "problem", "exit code 7"),
        ("exec /bin/sleep 30", "problem", "no answer within 0.3 s"),
    ],
)
def test_monitor_is_asked(root: Path, script: str, status: str, found: str) -> None:
    _put(root, "usr/bin/cnmon")
    program = root / "usr" / "bin" / "cnmon"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    finding = _findings(root, 0.3 if "sleep" in script else 10.0)["cnmon"]
    assert (finding.status, finding.found) == (status, found)


def test_neuware_home_is_looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path) -> None:
    monkeypatch.setenv("NEUWARE_HOME", str(tmp_path / "nothing"))
    assert _findings(root)["NEUWARE_HOME"].status == "problem"
    monkeypatch.setenv("NEUWARE_HOME", str(tmp_path))
    assert _findings(root)["NEUWARE_HOME"].found == f"{tmp_path}; no bin/mm_run"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "mm_run").touch()
    finding = _findings(root)["NEUWARE_HOME"]
    assert (finding.status, finding.found) == ("ok", f"{tmp_path}, with bin/mm_run")
    monkeypatch.delenv("NEUWARE_HOME")
    _put(root, "usr/local/neuware/bin/mm_run")
    assert _findings(root)["NEUWARE_HOME"].remedy == f"export NEUWARE_HOME={root}/usr/local/neuware"


def test_worker_tells_what_it_has(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    from clipmlu.magicmind.emulator import site_path

    monkeypatch.setenv("CLIPMLU_MLU_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", str(site_path()))
    finding = _findings(root)["MLU worker"]
    assert finding.status == "ok"
    assert finding.found.startswith(f"'{sys.executable}': Python 3.")
    assert finding.found.endswith("emulated SDK, cards: 1")


def test_worker_without_an_sdk_and_no_worker_at_all_are_problems(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLIPMLU_MLU_PYTHON", sys.executable)
    finding = _findings(root)["MLU worker"]
    assert finding.status == "problem"
    assert "No module named 'magicmind'" in finding.remedy
    monkeypatch.setenv("CLIPMLU_MLU_PYTHON", str(tmp_path / "python3.7"))
    finding = _findings(root)["MLU worker"]
    assert finding.status == "problem"
    assert "No such file or directory" in finding.found
    assert "'MLU worker' below says whether it answers" in _findings(root)["target mlu"].found
    assert main(["doctor"]) == 1
    monkeypatch.setenv("CLIPMLU_MLU_WORKER", f"unix:{tmp_path}/nobody.sock")
    finding = _findings(root)["MLU worker"]
    assert finding.status == "problem"
    assert "CLIPMLU_MLU_WORKER" in finding.remedy
    capsys.readouterr()


def test_cache_that_cannot_be_written_is_a_problem_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path / "file" / "cache"))
    finding = _findings(root)["cache"]
    assert finding.status == "problem"
    assert "CLIPMLU_CACHE_DIR" in finding.remedy
    assert main(["doctor"]) == 1


def test_absent_runtime_is_a_problem(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert _findings(root)["target cpu"].status == "problem"


def test_report_at_80_columns_has_each_check_beside_its_finding(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLIPMLU_CACHE_DIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    lines = on_terminal(80, lambda: main(["doctor"]))
    checks = [finding.check for finding in examine()]
    starts = [line[4:25].strip() for line in lines if line[:4].strip() in {"ok", "-", "!!"}]
    assert [check for check in checks if check in starts] == checks
    assert all(line[:4].strip() == "" for line in lines if "remedy:" in line)
    assert not missing([str(tmp_path)], lines)


def test_remedy_is_shown_with_its_brackets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    main(["doctor"])
    assert "'clipmlu[export]'" in capsys.readouterr().out


def test_fractional_quota_and_instructions_of_the_cores_are_reported(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        _write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}\n")
    _write(root, "proc/cpuinfo", "flags : fpu avx2 avx512f avx512_vnni\n")
    _write(root, "sys/fs/cgroup/cpu.max", "150000 100000\n")
    assert _findings(root)["cores"] == Finding(
        check="cores",
        status="ok",
        found="4 CPUs on 2 cores with hyper-threads; the container's quota is 1.5; AVX2, AVX512, VNNI",
        remedy="2 threads share 1.5 CPUs and stop in turn: give the container a whole number of CPUs",
    )
    _write(root, "sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert _findings(root)["cores"].remedy == ""


def _write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_rate_of_the_host_is_measured_for_one_core_and_all(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: {0, 1, 2, 3}, raising=False)
    for cpu in range(4):
        _write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{cpu % 2},{cpu % 2 + 2}\n")
    _write(root, "sys/fs/cgroup/cpu.max", "250000 100000\n")
    finding = _findings(root)["image rate"]
    match = re.search(r"one core prepares (\d+) photos/s .*, 2\.5 at most (\d+), less because 2 cores", finding.found)
    assert match is not None, finding
    rate, most = map(int, match.groups())
    assert 1 < rate < 5000
    assert abs(most - 2.5 * rate) <= 2
    assert finding.status == "ok"


def test_no_place_for_temporary_files_is_a_problem_and_no_traceback(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared_per_core_second.cache_clear()
    monkeypatch.setattr(tempfile, "tempdir", str(root / "gone"))
    finding = _findings(root)["image rate"]
    assert (finding.status, finding.found) == ("problem", "not measured")
    assert re.search(r"Cannot write '.*gone'", finding.remedy)
