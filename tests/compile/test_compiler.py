"""Compiling: options checked first, results gated, nothing half-written."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest

import faulty_backends
import support
from clipmlu.backends import backend_for_target
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle, open_bundle
from clipmlu.compile.compiler import compile_bundle
from clipmlu.compile.plan import CompileOptions
from clipmlu.errors import BundleExistsError, GateError, MissingDependencyError, OptionError, PrecisionError
from clipmlu.specs import Precision


def test_manifest_says_what_was_decided_and_from_what(exported: ExportedBundle, compiled: CompiledBundle) -> None:
    facts = compiled.compilation
    assert facts.source_digest == exported.digest
    assert (facts.target, facts.backend, facts.precision) == ("cpu", "onnxruntime", Precision.FORCE_FLOAT32)
    assert (facts.dynamic_shape, facts.batch_size, facts.max_batch, facts.emulated) == (True, 4, 8, False)
    assert {record.tower for record in facts.parity} == {"image", "text"}
    assert compiled.manifest.text_id == exported.manifest.text_id
    assert {"onnxruntime", "pillow"} <= set(compiled.manifest.tool_versions)
    assert open_bundle(compiled.path).digest == compiled.digest


def test_static_shape_is_written_into_the_graph(exported: ExportedBundle, tmp_path: Path) -> None:
    compiled = compile_bundle(exported, tmp_path / "static", CompileOptions(batch_size=3, dynamic_shape=False))
    graph = onnx.load(compiled.tower_path("image")).graph
    assert [axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim] == [3, 3, support.SIDE, support.SIDE]
    assert compiled.compilation.max_batch == 3


def test_auto_takes_the_first_available_target(exported: ExportedBundle, tmp_path: Path) -> None:
    notes: list[str] = []
    compiled = compile_bundle(exported.path, tmp_path / "auto", on_note=notes.append)
    assert compiled.compilation.target == backend_for_target("auto")[0]
    assert notes[0].startswith(f"target auto: {compiled.compilation.target} for ")
    compile_bundle(exported.path, tmp_path / "named", CompileOptions(target="cpu"), on_note=notes.append)
    assert len(notes) == 1


def test_precision_that_is_not_offered_is_a_clear_error(
    exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_backends.register(monkeypatch)
    options = CompileOptions(target="narrow", precision=Precision.FORCE_FLOAT16)
    with pytest.raises(
        PrecisionError, match=r"Target 'narrow' does not offer the precision 'force_float16' yet.*force_float32"
    ):
        compile_bundle(exported, tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_whose_package_is_missing_is_refused_before_anything_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = support.write_exported(tmp_path / "words", needs_tokenizers=True)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    steps = support.StepRecorder()
    with pytest.raises(MissingDependencyError, match=r"needs 'tokenizers'.*'clipmlu\[tokenizers\]'$"):
        compile_bundle(exported, tmp_path / "out", CompileOptions(target="cpu"), on_step=steps)
    assert (steps.events, list(tmp_path.iterdir())) == ([], [exported.path])
    compile_bundle(exported, tmp_path / "out", CompileOptions(target="cpu", check=False))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch size is 0"),
        ({"max_batch": 0}, "max batch is 0"),
        ({"batch_size": 65, "max_batch": 64}, "batch size 65 is larger than max batch 64"),
        ({"batch_size": 4, "max_batch": 8, "dynamic_shape": False}, "a static shape takes exactly 4"),
    ],
)
def test_impossible_options_are_refused_at_once(options: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CompileOptions(**options)  # type: ignore[arg-type]


def test_default_max_batch_grows_with_the_batch_size() -> None:
    assert CompileOptions().largest_batch == 64
    assert CompileOptions(batch_size=100).largest_batch == 100


def test_taken_output_is_refused(exported: ExportedBundle, compiled: CompiledBundle) -> None:
    with pytest.raises(BundleExistsError, match="--overwrite"):
        compile_bundle(exported, compiled.path, CompileOptions(target="cpu"))


def test_graph_that_disagrees_is_never_published(
    exported: ExportedBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faulty_backends.register(monkeypatch)
    with pytest.raises(
        GateError, match=r"Compiled (image|text) tower differs from the exported one by .*No bundle was written"
    ):
        compile_bundle(exported, tmp_path / "out", CompileOptions(target="spoiling"))
    assert not (tmp_path / "out").exists()
