"""The checks of ``clipmlu doctor``."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from clipmlu._version import __version__
from clipmlu.backends import BACKENDS, TARGETS, Backend, get_backend
from clipmlu.backends.worker_options import WorkerOptions
from clipmlu.data.datasets import DATASETS, locate_dataset
from clipmlu.data.jpeg import describe_decoder
from clipmlu.data.resize.kernel import describe_kernel, load_kernel
from clipmlu.errors import BackendUnavailableError, ClipmluError, OutputError
from clipmlu.host import (
    CACHE_VARIABLE,
    allowed_cpus,
    available_cpus,
    cache_dir,
    cpu_instructions,
    cpu_quota,
    describe_cores,
    physical_cores,
    usable_cores,
)
from clipmlu.magicmind.client.options import PYTHON_VARIABLE, WORKER_VARIABLE, worker_from_environment
from clipmlu.measure.speed.host_rate import prepared_per_core_second
from clipmlu.specs import VENDOR_PRECISIONS, Spec

_EXTRAS: dict[str, tuple[str, tuple[str, ...]]] = {
    "bulk": ("clipmlu embed -o DIR", ("pyarrow",)),
    "compile": ("clipmlu compile, sweep, import, lower, compare and emulate", ("onnx", "onnx_ir")),
    "dataframe": ("to_dataframe() in Python", ("pandas",)),
    "export": ("clipmlu export", ("torch", "open_clip", "onnxscript", "transformers")),
    "openvino": ("clipmlu compile --target openvino", ("openvino",)),
    "ray": ("clipmlu embed -o DIR --engine ray", ("ray",)),
    "report": ("clipmlu report", ("jinja2", "matplotlib")),
    "search": ("clipmlu index --approximate, clipmlu search --html", ("faiss", "jinja2")),
    "serve": ("clipmlu serve", ("fastapi", "uvicorn", "python_multipart", "prometheus_client")),
    "tokenizers": (
        "clipmlu import, and models with another tokenizer than that of CLIP, such as SigLIP",
        ("tokenizers",),
    ),
}
"""Maps an extra to the command that needs it and the modules that it installs."""

_DEVICES = "dev"
_DRIVER_FACTS = "proc/driver/cambricon"
_MODULES = "sys/module"
_MONITOR = "usr/bin/cnmon"
_NEUWARE = "usr/local/neuware"
_OLDEST_DRIVER = (4, 20, 6)
"""Required by the vendor's model zoo (docs/magicmind-api.md, section 5)."""
_WORKER_SECONDS = 20.0


class Finding(Spec, frozen=True, kw_only=True):
    """One line of the doctor's report.

    Attributes:
        check: what was checked.
        status: ``ok``; ``optional`` if something is missing that only some users need; ``problem``.
        found: result of the check.
        remedy: advice, or empty.
    """

    check: str
    status: Literal["ok", "optional", "problem"]
    found: str
    remedy: str = ""


def examine(*, root: Path = Path("/"), monitor_seconds: float = 5.0) -> list[Finding]:
    """Check the interpreter, the runtimes, the extras, the cache and the datasets; never raises.

    Args:
        root: folder below which the files of the vendor's driver and tools are searched.
        monitor_seconds: longest wait for an answer of the vendor's ``cnmon``.
    """
    return [
        Finding(
            check="clipmlu",
            status="ok",
            found=f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        ),
        _cores_finding(root),
        _jpeg_finding(),
        _resize_finding(),
        _images_finding(root),
        *_backend_findings(),
        *_mlu_findings(root, monitor_seconds),
        *_extra_findings(),
        _cache_finding(),
        *(
            Finding(check=f"dataset {name}", status="ok", found=locate_dataset(name))
            for name in DATASETS
            if ":" not in name
        ),
    ]


def _jpeg_finding() -> Finding:
    """Report whether simplejpeg decodes JPEGs, and why not."""
    decoder = describe_decoder()
    status: Literal["ok", "optional"] = "ok" if decoder.is_fast else "optional"
    return Finding(check="JPEG decoding", status=status, found=decoder.found, remedy=decoder.remedy)


def _resize_finding() -> Finding:
    """Report whether the compiled resize kernel is used, and why not."""
    kernel = load_kernel()
    if isinstance(kernel, str):
        return Finding(
            check="image resize",
            status="optional",
            found=describe_kernel(),
            remedy=f"{kernel}; images are resized more slowly",
        )
    return Finding(check="image resize", status="ok", found=describe_kernel())


def _cores_finding(root: Path) -> Finding:
    """Report the CPUs that this process may use, a container's quota, and the instructions that decide their speed."""
    found, instructions = describe_cores(root), cpu_instructions(root)
    known = "instructions not known" if instructions is None else ", ".join(instructions) or "no AVX2"
    quota, workers = cpu_quota(root), available_cpus(root)
    remedy = ""
    if quota is not None and quota < workers <= len(allowed_cpus()):
        remedy = f"{workers} threads share {quota:g} CPUs and stop in turn: give the container a whole number of CPUs"
    return Finding(check="cores", status="ok", found=f"{found}; {known}", remedy=remedy)


def _images_finding(root: Path) -> Finding:
    """Measure how many images the cores can prepare: a faster device waits for them."""
    check = "image rate"
    try:
        rate = prepared_per_core_second()
    except OutputError as error:
        return Finding(check=check, status="problem", found="not measured", remedy=str(error))
    cores, physical = usable_cores(root), physical_cores(root)
    found = f"one core prepares {rate:.0f} photos/s (JPEG, 0.6 megapixels, for 224 x 224), {cores:g} at most {cores * rate:.0f}"
    if physical is not None and physical < cores:
        found = f"{found}, less because {physical} cores with hyper-threads are counted twice"
    remedy = "a device that takes more waits for the host: 'clipmlu bench' says how long, and what would help"
    return Finding(check=check, status="ok", found=found, remedy=remedy)


def _backend_findings() -> Iterator[Finding]:
    for name in BACKENDS:
        backend = get_backend(name)
        availability = backend.probe()
        check = f"target {', '.join(target for target, each in TARGETS.items() if each == name)}"
        if availability.ok:
            yield _usable_backend(check, backend, availability.version or "")
        else:
            status: Literal["optional", "problem"] = "problem" if name == "onnxruntime" else "optional"
            yield Finding(check=check, status=status, found="absent", remedy=availability.reason)


def _usable_backend(check: str, backend: Backend, version: str) -> Finding:
    """Report an available runtime; for a CPU runtime with the modes that depend on the machine."""
    if backend.emulated:
        return Finding(check=check, status="ok", found=f"{version}: not a card")
    found = f"{backend.name} {version}"
    if backend.has_cards:
        asked = "" if worker_from_environment() is None else "; 'MLU worker' below says whether it answers"
        return Finding(check=check, status="ok", found=f"{found}{asked}")
    try:
        modes = backend.precisions
    except BackendUnavailableError as error:
        return Finding(check=check, status="problem", found=found, remedy=f"install it again: {error}")
    if modes != VENDOR_PRECISIONS:
        found = f"{found}; on this CPU: {', '.join(mode.value for mode in modes)}"
    for kernels in filter(None, map(backend.kernels, modes)):
        found = f"{found}; {kernels}"
    return Finding(check=check, status="ok", found=found)


# ---- MLU: the facts behind these checks are in docs/magicmind-api.md, section 5 ------------------------------------------


def _mlu_findings(root: Path, monitor_seconds: float) -> Iterator[Finding]:
    from clipmlu.magicmind.backend import real_sdk_is_importable

    worker = worker_from_environment()
    importable = real_sdk_is_importable()
    yield _card_finding(root / _DEVICES, has_sdk=importable or worker is not None)
    yield _driver_finding(root / _DRIVER_FACTS, root / _MODULES)
    yield _monitor_finding(root / _MONITOR, monitor_seconds)
    yield _neuware_finding(root / _NEUWARE)
    if importable:
        yield Finding(check="MagicMind SDK", status="ok", found="importable in this process")
    else:
        yield Finding(check="MagicMind SDK", status="optional", found="not importable in this process")
    yield _worker_finding(worker)


def _card_finding(folder: Path, has_sdk: bool) -> Finding:
    """Look for MLU cards by the driver's device files: ``/dev/cambricon_dev0``, ``/dev/cambricon_ctl``."""
    check = "MLU card"
    devices = sorted(folder.glob("cambricon_dev*"))
    if not devices:
        remedy = "on a machine with a card: install its driver, and pass the devices to a container with --device"
        return Finding(check=check, status="optional", found=f"no {folder}/cambricon_dev*", remedy=remedy)
    found = ", ".join(path.name for path in devices)
    closed = [path.name for path in devices if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        remedy = f"let this user read and write {', '.join(closed)}"
        return Finding(check=check, status="problem", found=f"{found}; no access", remedy=remedy)
    if not has_sdk:
        remedy = f"there is no SDK for it: set {PYTHON_VARIABLE} to the interpreter that has 'magicmind', or {WORKER_VARIABLE}"
        return Finding(check=check, status="problem", found=found, remedy=remedy)
    if not (folder / "cambricon_ctl").exists():
        remedy = f"the vendor's containers get {folder}/cambricon_ctl too: --device /dev/cambricon_ctl"
        return Finding(check=check, status="optional", found=f"{found}; no cambricon_ctl", remedy=remedy)
    return Finding(check=check, status="ok", found=found)


def _driver_finding(facts: Path, modules: Path) -> Finding:
    """Report the kernel driver's version."""
    check = "MLU driver"
    if not facts.exists() and not any(modules.glob("cambricon*")):
        return Finding(check=check, status="optional", found=f"no {facts}")
    version = _driver_version(facts, modules)
    if version is None:
        return Finding(check=check, status="ok", found="loaded; version not known")
    if tuple(int(part) for part in version.split(".")) < _OLDEST_DRIVER:
        oldest = ".".join(map(str, _OLDEST_DRIVER))
        remedy = f"the vendor's model zoo asks for {oldest} or newer: update the driver of the host"
        return Finding(check=check, status="problem", found=version, remedy=remedy)
    return Finding(check=check, status="ok", found=version)


def _driver_version(facts: Path, modules: Path) -> str | None:
    """Read the version from ``/sys/module/*/version``, or search /proc, whose format is not documented."""
    for path in sorted(modules.glob("cambricon*/version")):
        if match := re.search(r"\d+\.\d+\.\d+", _head_of(path)):
            return match[0]
    for path in sorted(facts.rglob("*"))[:200]:
        if match := re.search(r"driver[^\n\d]{0,40}(\d+\.\d+\.\d+)", _head_of(path), re.IGNORECASE):
            return match[1]
    return None


def _head_of(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            return stream.read(1 << 16).decode("utf-8", "replace")
    except OSError:  # a folder or an unreadable file holds no version
        return ""


def _monitor_finding(installed: Path, seconds: float) -> Finding:
    """Run the vendor's ``cnmon`` to read its version, if it is installed."""
    program = shutil.which("cnmon") or str(installed)
    if not os.access(program, os.X_OK):
        return Finding(check="cnmon", status="optional", found="absent")
    said = "no answer"
    for command in ("version", "info"):  # public scripts call ``info``
        try:
            done = subprocess.run(  # noqa: S603
                [program, command],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            said = f"no answer within {seconds:g} s"
            break
        except OSError as error:
            said = str(error.strerror)
            break
        said = " ".join((done.stdout or done.stderr).split())[:120] or f"exit code {done.returncode}"
        if done.returncode == 0:
            return Finding(check="cnmon", status="ok", found=said)
    remedy = f"run '{program} info' to see what is wrong with the card or its driver"
    return Finding(check="cnmon", status="problem", found=said, remedy=remedy)


def _neuware_finding(usual: Path) -> Finding:
    """Report the SDK's home: NEUWARE_HOME, or the path in public scripts; ``bin/mm_run`` in it measures speed."""
    named = os.environ.get("NEUWARE_HOME")
    home = Path(named) if named else usual
    if not home.is_dir():
        if named:
            remedy = "unset it, or set it to the folder of the vendor's tools"
            return Finding(check="NEUWARE_HOME", status="problem", found=f"'{named}' is no folder", remedy=remedy)
        return Finding(check="NEUWARE_HOME", status="optional", found=f"not set, and no {usual}")
    found = str(home) if named else f"not set; {home} is there"
    if not (home / "bin" / "mm_run").is_file():
        remedy = "'clipmlu bench --tool mm_run' needs it"
        return Finding(check="NEUWARE_HOME", status="optional", found=f"{found}; no bin/mm_run", remedy=remedy)
    remedy = "" if named else f"export NEUWARE_HOME={home}"
    return Finding(check="NEUWARE_HOME", status="ok", found=f"{found}, with bin/mm_run", remedy=remedy)


def _worker_finding(worker: WorkerOptions | None) -> Finding:
    """Ask the worker named by the environment for its Python, NumPy, SDK and cards."""
    check = "MLU worker"
    if worker is None:
        return Finding(check=check, status="optional", found=f"none named by {PYTHON_VARIABLE} or {WORKER_VARIABLE}")
    from clipmlu.magicmind.client.answers import HostFacts
    from clipmlu.magicmind.client.worker_client import WorkerClient
    from clipmlu.magicmind.driver.errors import DriverError

    variable = PYTHON_VARIABLE if worker.address is None else WORKER_VARIABLE
    client = WorkerClient(dataclasses.replace(worker, start_seconds=_WORKER_SECONDS, max_failures=1))
    try:
        facts = client.execute(lambda exchange: exchange({"op": "info"}, ()).read(HostFacts), _WORKER_SECONDS)
    except (ClipmluError, DriverError) as error:
        remedy = f"correct {variable}, or unset it"
        return Finding(check=check, status="problem", found=" ".join(str(error).split()), remedy=remedy)
    finally:
        client.close()
    found = f"{worker}: Python {facts.python}, NumPy {facts.numpy}"
    if facts.problem:
        remedy = f"{variable} must lead to where 'magicmind' imports: {facts.problem}"
        return Finding(check=check, status="problem", found=f"{found}, no SDK", remedy=remedy)
    version = facts.sdk.version if facts.sdk is not None else None
    kind = "emulated SDK" if facts.emulated else f"SDK {version or 'of unknown version'}"
    remedy = "" if facts.cards else "there is no card: it can build models but not run them"
    return Finding(check=check, status="ok", found=f"{found}, {kind}, cards: {facts.cards}", remedy=remedy)


def _extra_findings() -> Iterator[Finding]:
    for extra, (user, modules) in _EXTRAS.items():
        absent = [module for module in modules if util.find_spec(module) is None]
        if absent:
            remedy = f"needed by '{user}': pip install 'clipmlu[{extra}]'"
            yield Finding(
                check=f"extra {extra}", status="optional", found=f"absent: {', '.join(absent)}", remedy=remedy
            )
        else:
            versions = ", ".join(f"{module} {_version_of(module)}" for module in modules)
            yield Finding(check=f"extra {extra}", status="ok", found=versions)


def _version_of(module: str) -> str:
    return metadata.version({"faiss": "faiss-cpu", "open_clip": "open_clip_torch"}.get(module, module))


def _cache_finding() -> Finding:
    folder = cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = f"set {CACHE_VARIABLE} to a folder that can be written"
        return Finding(check="cache", status="problem", found=f"{folder}: {error.strerror}", remedy=remedy)
    return Finding(check="cache", status="ok", found=str(folder))
