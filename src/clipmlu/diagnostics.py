"""Checks behind ``clipmlu doctor`` and facts behind ``clipmlu info``."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path
from typing import Literal

from clipmlu import __version__, _environment
from clipmlu.backends import BACKENDS, TARGETS, get_backend
from clipmlu.bundle import Bundle, CompiledBundle, ParityRecord
from clipmlu.data.datasets import DATASETS, locate_dataset
from clipmlu.specs import MluBuild, Spec

_EXTRAS: dict[str, tuple[str, ...]] = {"export": ("torch", "open_clip", "onnxscript", "transformers")}
"""Extra -> the modules it brings."""

_DEVICES = Path("/dev")


class Finding(Spec, frozen=True, kw_only=True):
    """One line of the doctor's report.

    Attributes:
        check: what was looked at.
        status: ``ok``; ``optional`` for something absent that not everybody needs; ``problem``.
        found: what is there.
        remedy: what to do, empty when nothing need be done.
    """

    check: str
    status: Literal["ok", "optional", "problem"]
    found: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at the interpreter, the runtimes, the extras, the cache and the datasets; never raises."""
    return [
        Finding(
            check="clipmlu",
            status="ok",
            found=f"{__version__}, Python {platform.python_version()}, {platform.platform()}",
        ),
        Finding(check="cores", status="ok", found=str(_usable_cores())),
        *_backend_findings(),
        _card_finding(),
        *_extra_findings(),
        _cache_finding(),
        *(
            Finding(check=f"dataset {name}", status="ok", found=locate_dataset(name))
            for name in DATASETS
            if ":" not in name
        ),
    ]


def bundle_facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """What people want to know of a bundle, as (name, value) pairs."""
    manifest = bundle.manifest
    yield "bundle", f"{bundle.path} ({bundle.kind}, {bundle.size_bytes / 1e6:.1f} MB)"
    yield "model", str(manifest.model)
    yield "layout", manifest.layout
    for name, tower in manifest.towers.items():
        for direction, tensors in (("in", tower.inputs), ("out", tower.outputs)):
            for tensor in tensors:
                shape = ", ".join(str(size) for size in tensor.shape)
                yield f"{name} {direction}", f"{tensor.name}: {tensor.dtype} ({shape})"
    spec = manifest.preprocess
    yield "images", f"{spec.width} x {spec.height} pixels, {spec.resize_mode}, {spec.interpolation}"
    stand_in = ", a stand-in: texts mean nothing to this model" if manifest.tokenizer.stand_in else ""
    yield "texts", f"{manifest.tokenizer.context_length} tokens, {manifest.tokenizer.kind}{stand_in}"
    bias = "" if manifest.logit_bias is None else f", bias {manifest.logit_bias:.4f}"
    yield "logit scale", f"{manifest.logit_scale:.4f}{bias}"
    yield "activation", manifest.activation
    yield "graphs", f"opset {manifest.export.opset}, {manifest.export.exporter}"
    yield "parity", _parity_text(manifest.export.parity)
    if isinstance(bundle, CompiledBundle):
        yield from _compilation_facts(bundle)
    yield "digest", bundle.digest
    yield "made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.tool_versions.items()))


def _compilation_facts(bundle: CompiledBundle) -> Iterator[tuple[str, str]]:
    facts = bundle.compilation
    yield "target", f"{facts.target} ({facts.backend}){', emulated' if facts.emulated else ''}"
    yield "precision", facts.precision.value
    yield (
        "batch",
        f"1..{facts.max_batch}, preferably {facts.batch_size}"
        if facts.dynamic_shape
        else f"exactly {facts.batch_size}",
    )
    if facts.text_tower is not None:
        yield "text tower", f"{facts.text_tower.target} ({facts.text_tower.backend}), {facts.text_tower.precision.value}"
    if facts.mlu is not None:
        yield "built for", _archs_text(facts.mlu)
    if facts.calibration is not None:
        data = facts.calibration
        yield "calibration", f"{data.samples} images of {data.dataset}, {data.split}, seed {data.seed}; {data.texts} texts"
    yield "agreement", _parity_text(facts.parity) if facts.parity else "not checked"


def _archs_text(mlu: MluBuild) -> str:
    archs = ", ".join(
        f"{arch} ({', '.join(map(str, counts))} clusters)" if counts else arch for arch, counts in mlu.archs.items()
    )
    return f"{archs}; {mlu.granularity} weights, {mlu.activation} activations, {mlu.algorithm} calibration"


def _parity_text(records: tuple[ParityRecord, ...]) -> str:
    worst: dict[str, float] = {}
    for record in records:
        worst[record.tower] = max(worst.get(record.tower, 0.0), record.max_abs_diff)
    return ", ".join(f"{tower} {difference:.1e}" for tower, difference in worst.items()) + " max abs difference"


def _usable_cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)  # absent on macOS and Windows
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def _backend_findings() -> Iterator[Finding]:
    for name in BACKENDS:
        availability = get_backend(name).probe()
        targets = ", ".join(target for target, backend in TARGETS.items() if backend == name)
        if availability.ok:
            yield Finding(check=f"target {targets}", status="ok", found=f"{name} {availability.version}")
        else:
            yield Finding(check=f"target {targets}", status="problem", found="absent", remedy=availability.reason)


def _card_finding() -> Finding:
    """Look for an MLU card by the device files that its driver makes (magicmind_cloud README: /dev/cambricon_dev0)."""
    devices = sorted(path.name for path in _DEVICES.glob("cambricon_dev*"))
    if devices:
        return Finding(check="MLU card", status="ok", found=", ".join(devices), remedy="this version cannot use it yet")
    remedy = "on a machine with a card: install its driver, and pass the devices to a container with --device"
    return Finding(check="MLU card", status="optional", found=f"no {_DEVICES}/cambricon_dev*", remedy=remedy)


def _extra_findings() -> Iterator[Finding]:
    for extra, modules in _EXTRAS.items():
        absent = [module for module in modules if util.find_spec(module) is None]
        if absent:
            remedy = f"needed by 'clipmlu {extra}': pip install 'clipmlu[{extra}]'"
            yield Finding(
                check=f"extra {extra}", status="optional", found=f"absent: {', '.join(absent)}", remedy=remedy
            )
        else:
            versions = ", ".join(f"{module} {_version_of(module)}" for module in modules)
            yield Finding(check=f"extra {extra}", status="ok", found=versions)


def _version_of(module: str) -> str:
    return metadata.version({"open_clip": "open_clip_torch"}.get(module, module))


def _cache_finding() -> Finding:
    folder = _environment.cache_dir()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        remedy = f"set {_environment.CACHE_VARIABLE} to a folder that can be written"
        return Finding(check="cache", status="problem", found=f"{folder}: {error.strerror}", remedy=remedy)
    return Finding(check="cache", status="ok", found=str(folder))
