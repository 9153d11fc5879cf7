"""Bundles: verified when opened, published whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

import support
from clipmlu.bundle.directory import (
    CompiledBundle,
    ExportedBundle,
    open_bundle,
    open_compiled,
    open_exported,
    stage_bundle,
)
from clipmlu.bundle.verify import file_record
from clipmlu.errors import (
    BundleCorruptError,
    BundleError,
    BundleExistsError,
    BundleNotFoundError,
    BundleVersionError,
    OutputError,
)


def test_published_bundle_opens_with_its_manifest(exported: ExportedBundle) -> None:
    opened = open_bundle(exported.path)
    assert isinstance(opened, ExportedBundle)
    assert opened.manifest == exported.manifest
    assert opened.digest == file_record(exported.path / "manifest.json").sha256


def test_same_content_gives_the_same_digest(tmp_path: Path) -> None:
    assert support.write_exported(tmp_path / "a").digest == support.write_exported(tmp_path / "b").digest


def test_missing_directory_says_how_to_make_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(
        BundleNotFoundError, match=r"No bundle at '.*absent'.*clipmlu export MODEL.*clipmlu compile EXPORTED"
    ):
        open_bundle(tmp_path / "absent")


def test_directory_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleNotFoundError, match=r"it has no manifest\.json"):
        open_bundle(tmp_path)


def test_file_in_place_of_a_bundle_is_no_bundle(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(BundleNotFoundError):
        open_bundle(path)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema_version": 1}', b'{"schema_version": "x"}', b"\xff\xfe"]
)
def test_unreadable_manifest_is_corrupt(exported: ExportedBundle, content: bytes) -> None:
    (exported.path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleCorruptError, match=r"Manifest '.*' is not valid"):
        open_bundle(exported.path)


def test_newer_schema_is_refused_before_its_unknown_fields_are_read(exported: ExportedBundle) -> None:
    support.edit_manifest(exported.path, schema_version=99, field_of_the_future=1)
    with pytest.raises(BundleVersionError, match=r"manifest schema 99; this clipmlu .* reads up to 1.*Upgrade clipmlu"):
        open_bundle(exported.path)


def test_unknown_field_is_refused(exported: ExportedBundle) -> None:
    support.edit_manifest(exported.path, surprise=1)
    with pytest.raises(BundleCorruptError, match="surprise"):
        open_bundle(exported.path)


def test_digest_mismatch_names_the_file(exported: ExportedBundle) -> None:
    path = exported.path / "image.onnx"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(BundleCorruptError, match=r"File 'image\.onnx' .* does not match its digest"):
        open_bundle(exported.path)
    assert open_bundle(exported.path, verify=False)


def test_truncated_file_is_found_even_without_digests(exported: ExportedBundle) -> None:
    path = exported.path / "text.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BundleCorruptError, match=r"File 'text\.onnx' .* bytes; the manifest says"):
        open_bundle(exported.path, verify=False)


def test_missing_file_is_named(exported: ExportedBundle) -> None:
    (exported.path / "tokenizer.json").unlink()
    with pytest.raises(BundleCorruptError, match=r"File 'tokenizer\.json' .* cannot be read"):
        open_bundle(exported.path)


def test_unused_tower_may_be_absent(compiled: CompiledBundle) -> None:
    (compiled.path / "text.onnx").unlink()
    assert open_compiled(compiled.path, without=("text",))
    with pytest.raises(BundleCorruptError, match=r"text\.onnx"):
        open_compiled(compiled.path)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "a/../../outside", "..\\outside", ""])
def test_path_that_leaves_the_bundle_is_refused(exported: ExportedBundle, name: str) -> None:
    files = msgspec.to_builtins(exported.manifest.files)
    files[name] = {"sha256": "0" * 64, "size": 1}
    support.edit_manifest(exported.path, files=files)
    with pytest.raises(BundleCorruptError, match="is outside the bundle"):
        open_bundle(exported.path)


def test_link_that_leads_out_of_the_bundle_is_refused(exported: ExportedBundle, tmp_path: Path) -> None:
    inside = exported.path / "image.onnx"
    outside = tmp_path / "outside.onnx"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(BundleCorruptError, match="is outside the bundle"):
        open_bundle(exported.path)


def test_tower_file_without_a_digest_is_refused(exported: ExportedBundle) -> None:
    files = msgspec.to_builtins(exported.manifest.files)
    del files["image.onnx"]
    support.edit_manifest(exported.path, files=files)
    with pytest.raises(BundleCorruptError, match=r"names 'image\.onnx' without listing its digest"):
        open_bundle(exported.path)


def test_exported_and_compiled_are_told_apart(exported: ExportedBundle, compiled: CompiledBundle) -> None:
    with pytest.raises(BundleError, match="Compile it first: clipmlu compile"):
        open_compiled(exported.path)
    with pytest.raises(BundleError, match="is compiled already"):
        open_exported(compiled.path)


def test_existing_bundle_is_kept_unless_overwriting_is_asked_for(exported: ExportedBundle) -> None:
    with pytest.raises(BundleExistsError, match="--overwrite"), stage_bundle(exported.path):
        pass
    with stage_bundle(exported.path, overwrite=True) as staging:
        for name in exported.manifest.files:
            (staging.path / name).write_bytes((exported.path / name).read_bytes())
        staging.finish(exported.manifest)
    assert open_bundle(exported.path).digest == exported.digest
    assert [path.name for path in exported.path.parent.iterdir()] == ["tiny"]


def test_reader_after_a_kill_finds_the_bundle_that_was_moved_aside(exported: ExportedBundle) -> None:
    dead = exported.path.parent / ".clipmlu-0123456789abcdef.tmp"
    dead.mkdir()
    (dead / "lock").touch()
    (dead / "targets.json").write_text('["tiny"]')
    exported.path.rename(dead / "new-0")
    assert open_bundle(exported.path).digest == exported.digest
    assert not dead.exists()


def test_directory_that_is_no_bundle_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "precious.txt").write_text("x")
    with (
        pytest.raises(BundleExistsError, match="is not a bundle; it is not changed"),
        stage_bundle(tmp_path, overwrite=True),
    ):
        pass
    assert (tmp_path / "precious.txt").read_text() == "x"


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_failed_build_leaves_nothing_behind(tmp_path: Path, error: BaseException) -> None:
    def build() -> None:
        with stage_bundle(tmp_path / "new") as staging:
            (staging.path / "half").write_text("x")
            raise error

    with pytest.raises(type(error)):
        build()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"No space left on the disk of '.*new'; nothing was written"),
        stage_bundle(tmp_path / "new"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="Cannot write"), stage_bundle(tmp_path / "file" / "new"):
        pass


def _set(manifest: Any, path: str, value: object) -> None:
    *steps, last = path.split(".")
    for step in steps:
        manifest = manifest[int(step) if step.isdigit() else step]
    manifest[int(last) if last.isdigit() else last] = value


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("embedding_dim", 10**18),
        ("embedding_dim", 13),
        ("logit_scale", 0),
        ("logit_scale", -1),
        ("logit_scale", 1e300),
        ("logit_scale", 1001.0),
        ("logit_scale", 1e-4),
        ("logit_bias", 1e300),
        ("preprocess.std.1", 0),
        ("preprocess.std.1", 1e-50),
        ("preprocess.std.1", -0.5),
        ("preprocess.mean.0", 1e300),
        ("preprocess.height", 10**18),
        ("preprocess.height", 9),
        ("preprocess.width", 16),
        ("tokenizer.context_length", 10**18),
        ("tokenizer.context_length", 31),
        ("tokenizer.pad_id", 10**18),
        ("tokenizer.class_token_id", 1),
        ("towers.image.inputs", []),
        ("towers.image.outputs", []),
        ("towers.image.file", "tokenizer.json"),
        ("towers.image.file", "text.onnx"),
        ("towers.image.inputs.0.name", "pixels"),
        ("towers.image.inputs.0.dtype", "float128"),
        ("towers.image.inputs.0.dtype", "uint8"),
        ("towers.image.inputs.0.shape", []),
        ("towers.image.inputs.0.shape", ["batch", 3, 8, 10**18]),
        ("towers.image.inputs.0.shape", [4, 3, 8, 8]),
        ("towers.image.outputs.0.shape", ["batch"]),
        ("towers.text.outputs.0.shape", ["batch", 24]),
        ("towers.text.inputs.0.dtype", "float32"),
    ],
)
def test_numbers_that_no_model_has_are_refused(exported: ExportedBundle, field: str, value: object) -> None:
    path = exported.path / "manifest.json"
    manifest = msgspec.json.decode(path.read_bytes())
    _set(manifest, field, value)
    path.write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(BundleCorruptError, match=r"^(Manifest|Graph) .*tiny.*Make the bundle again\.$"):
        open_bundle(exported.path)


@pytest.mark.parametrize("rows", [4, "batch"])
def test_batch_of_a_compiled_tower_is_that_of_the_record(compiled: CompiledBundle, rows: int | str) -> None:
    path = compiled.path / "manifest.json"
    manifest = msgspec.json.decode(path.read_bytes())
    _set(manifest, "compilation.dynamic_shape", False)
    _set(manifest, "compilation.batch_size", 5)
    _set(manifest, "towers.image.inputs.0.shape.0", rows)
    path.write_bytes(msgspec.json.encode(manifest))
    with pytest.raises(
        BundleCorruptError, match=f"'pixel_values' with {rows} rows, but was compiled for static batches of 5"
    ):
        open_bundle(compiled.path)


def test_deep_nesting_is_one_line(exported: ExportedBundle) -> None:
    (exported.path / "manifest.json").write_bytes(b'{"schema_version": 1, "tool_versions": ' + b"[" * 1_000_000)
    with pytest.raises(BundleCorruptError, match="nested too deeply"):
        open_bundle(exported.path)


@pytest.mark.parametrize("place", ["manifest.json", "tokenizer.json", "text.onnx"])
def test_pipes_and_devices_are_refused_at_once(exported: ExportedBundle, place: str) -> None:
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (exported.path / place).unlink()
        make(exported.path / place)
        with pytest.raises(BundleError, match=place):
            open_bundle(exported.path)


def test_path_that_is_too_long_for_the_system_is_one_line() -> None:
    with pytest.raises(BundleError, match="File name too long"):
        open_bundle("x" * 5000)
