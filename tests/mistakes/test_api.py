"""Mistakes of new users in Python: what they wrote, and what the one line of the answer holds."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

import clipmlu
from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from clipmlu.errors import ClipmluError

MISTAKES: list[tuple[str, list[str]]] = [
    ("load('ViT-B-32')", ["'ViT-B-32' is the name of a model", "clipmlu.pipeline('ViT-B-32::openai')"]),
    ("load('exported')", ["'exported' is an exported bundle", "clipmlu.pipeline('exported')"]),
    ("load('no-such-folder')", ["no-such-folder"]),
    ("compile_bundle('exported', 'o', precison='float32')", ["'precison'", "precision", "compile_bundle"]),
    ("compile_bundle('exported', 'o', precision='half')", ["precision is 'half'", "force_float16"]),
    ("compile_bundle('exported', 'o', target='gpu')", ["'gpu'", "cpu", "openvino"]),
    ("compile_bundle('exported', 'o', batch_size='32')", ["batch size is '32'", "whole number"]),
    ("compile_bundle('exported', 'o', calib_samples=0)", ["calib samples is 0", "1 or more"]),
    ("compile_bundle('exported', 'o', smooth_alpha='strong')", ["smoothing strength is 'strong'", "0.5"]),
    ("compile_bundle('exported', 'o', granularity='axis')", ["granularity is 'axis'", "per_axis"]),
    ("compile_bundle('exported', 'o', {'target': 'cpu'})", ["options is {'target': 'cpu'}", "CompileOptions"]),
    ("compile_bundle('exported', 'o', CompileOptions(), target='cpu')", ["the keyword 'target'", "one of them"]),
    ("compile_bundle('compiled', 'o', target='cpu')", ["'compiled' is compiled already", "exported"]),
    ("compile_bundle('exported', 'compiled', target='cpu')", ["'compiled'", "exists"]),
    ("compile_bundle('exported', 'o', target='cpu', search_samples=9)", ["search samples is 9", "give max_drop"]),
    ("lower('compiled', 'o')", ["'compiled' is compiled already", "exported"]),
    ("lower('exported', 'o', layouts='joint')", ["'layouts'", "Did you mean 'layout'?"]),
    ("lower('exported', 'o', target='cpu')", ["target is 'cpu'", "mlu"]),
    ("lower('exported', 'o', layout='joint', text_rows=5, labels='cat,dog')", ["text rows is 5", "2 labels"]),
    ("search_bundle('exported', 'o', calib='demo')", ["max drop is missing", "max_drop=0.01"]),
    ("calibrate_bundle('exported', 'o')", ["calib is missing", "calib='cifar100'"]),
    ("export_model('demo', 'o', layout='fused')", ["layout is 'fused'", "towers, joint"]),
    ("evaluate('compiled', 'cifar')", ["'cifar'", "cifar10"]),
    ("evaluate('compiled', 'demo', sample=10)", ["'sample'", "samples"]),
    ("evaluate('compiled', 'demo', samples=0)", ["samples is 0", "1 or more"]),
    ("evaluate('compiled', 'demo', max_drop=0.01)", ["max drop is 0.01", "baseline"]),
    ("evaluate('compiled', ['demo'])", ["dataset is ['demo']", "open_dataset"]),
    ("evaluate_retrieval('compiled', 'no.csv')", ["'no.csv' does not exist"]),
    ("evaluate_retrieval('compiled', [('a.png', 'a cat')])", ["pairs is [('a.png', 'a cat')]", "a path"]),
    ("evaluate_retrieval('compiled', 'no.csv', max_drop=0.01)", ["'max_drop'", "max_recall_drop"]),
    ("evaluate_retrieval('compiled', 'no.csv', max_recall_drop=0.01)", ["max recall drop is 0.01", "baseline"]),
    (
        "compile_bundle('exported', 'o', target='cpu', search_pairs='no.csv')",
        ["search pairs is 'no.csv'", "give max_drop"],
    ),
    ("measure_speed('compiled', scenario='fast')", ["'fast'", "single-stream"]),
    ("run_sweep('exported', 'o')", ["precision is missing"]),
    ("classify_images('compiled', 'photos', 'o')", ["class names", "classifier file"]),
    ("classify_images('compiled', None, 'o', ['cat'])", ["inputs are None", "a file, folder, glob pattern"]),
    ("classify_images('compiled', b'photos', 'o', ['cat'])", ["inputs are b'photos'", "a file, folder"]),
    ("embed_images('compiled', ['a.png', b'PNG'], 'o')", ["inputs[1] is b'PNG'", "predict and embed_images"]),
    ("embed_to_file('compiled', 'rows.txt', 'photos')", ["'rows.txt'", ".npy"]),
    ("embed_images('compiled', 'photos', 'o', shard_format='csv2')", ["shard format is 'csv2'", "parquet"]),
    ("pipeline('ViT-B-32::opena1', ['cat'])", ["'opena1'", "openai"]),
    ("pipeline('compiled', ['cat', 'dog'], precision='fp16')", ["precision is", "compiled already"]),
    ("pipeline('compiled', template='a {}')", ["'template'", "pipeline"]),
    ("pipeline('compiled', candidate_labels=['cat'])", ["Did you mean 'labels'?"]),
    ("pipeline('compiled', template='a {}', labels=['cat'])", ["Did you mean 'templates'?"]),
    ("pipeline('compiled', ['cat'], dtype='fp16')", ["Did you mean 'precision'?"]),
    ("pipeline('exported', ['cat'], device='cpu')", ["device is 'cpu'", "index of an MLU card", "target"]),
    ("pipeline('exported', ['cat'], none_label='', cache_dir='o')", ["none label is ''"]),
    ("pipeline('compiled', labels=[])", ["class names"]),
    ("pipeline(3)", ["the model is 3", "expected"]),
    ("build_index('compiled')", ["'compiled' is not the folder of a job", "clipmlu embed BUNDLE"]),
    ("build_index(['a', 'b'])", ["the output is not given"]),
    ("build_index('compiled', 'o', quantise=True)", ["'quantise'", "build_index"]),
    ("open_index('compiled')", ["'compiled' holds no index"]),
    ("search_index('compiled', ['cat'])", ["'compiled' holds no index"]),
    ("search_index('photos', ['cat'], topk=3)", ["Did you mean 'top_k'?"]),
    ("search_index('photos', 'cat.jpg')", ["'cat.jpg' looks like an image file", "--text"]),
    ("search_index('photos', 3)", ["a query is 3", "expected a text"]),
    ("run_emulated('python gen.py')", ["command is 'python gen.py'", "['python', 'gen_model.py']"]),
    ("run_emulated(['python'], compat='yes')", ["compat is 'yes'", "True or False"]),
    ("run_emulated(['python'], card=2)", ["card", "devices"]),
]


@pytest.mark.parametrize(("code", "expected"), MISTAKES)
def test_the_answer_is_one_line_that_helps(
    code: str,
    expected: list[str],
    exported: ExportedBundle,
    compiled: CompiledBundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if "::" in code or "ViT" in code:
        pytest.importorskip("open_clip", reason="needs the extra export")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(exported.path, "exported")
    shutil.copytree(compiled.path, "compiled")
    names: dict[str, Any] = {name: getattr(clipmlu, name) for name in clipmlu.__all__}
    with pytest.raises(ClipmluError) as caught:
        eval(code, names)
    message = str(caught.value)
    assert "\n" not in message
    for part in expected:
        assert part.lower() in message.lower(), message
    assert not Path("o").exists()
