"""Mistakes on the command line: one line says what is wrong and what to do, and the exit code says whose fault it is.

2: the command line itself; 1: what was found while working; see ``docs/design.md``.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clipmlu.bundle.directory import CompiledBundle, ExportedBundle
from support import picture

Run = Callable[..., tuple[int, str]]

# E: an exported bundle, B: a compiled one, photos: a folder with an image.
MISTAKES = [
    ("exprot demo -o new", 2, "No such command 'exprot'", "'export'?"),
    ("compile E --batch 3 -o new", 2, "No such option '--batch'", "Try 'clipmlu compile --help'."),
    ("compile E", 2, "Missing option '-o' / '--output'", "Try 'clipmlu compile --help'."),
    ("classify", 2, "Missing argument 'BUNDLE'", "Try 'clipmlu classify --help'."),
    ("compile E -o new --batch-size many", 2, "'--batch-size': 'many' is not a valid integer", "--help'."),
    ("compile E -o new --batch-size 0", 2, "'--batch-size': 0 is not in the range x>=1", "--help'."),
    ("eval B --dataset demo --max-drop 1%", 2, "'--max-drop': '1%' is not a valid number", "--help'."),
    ("eval B --dataset demo --max-drop 0.01", 2, "--max-drop needs a --baseline", "compare with"),
    ("eval B pairs.csv", 2, "the files of pairs ('pairs.csv') are for --task retrieval", "add it"),
    ("eval B --task retrieval", 2, "Missing argument 'PAIRS'", "--help'."),
    ("eval B nowhere.csv --task retrieval", 1, "'nowhere.csv' does not exist", "file of pairs"),
    ("eval B photos --task retrieval", 1, "'photos': it is a folder; give the files in it", "Expected .csv, .tsv"),
    ("eval B --dataset demo --max-recall-drop 0.1", 2, "--max-recall-drop is for --task retrieval", "leave one"),
    ("compile E -o new --search-pairs pairs.csv", 2, "nothing is searched", "give max_drop (--max-drop) too"),
    (
        "compile E -o new --search-samples 10",
        2,
        "search samples is 10, but nothing is searched",
        "give max_drop (--max-drop) too",
    ),
    (
        "compile E -o new --search-templates simple",
        2,
        "search templates is 'simple', but nothing",
        "give max_drop (--max-drop) too",
    ),
    ("-q info B -v", 2, "--quiet and --verbose exclude each other", "leave out one"),
    ("classify B photos", 2, "Give either --labels or --classifier", "--labels"),
    ("classify B --labels a,b", 2, "Give at least one INPUT", "a file, a folder"),
    ("classify B photos --labels a,b -o out.xlsx", 2, "'out.xlsx'", ".txt, .json, .jsonl, .csv"),
    ("embed B photos -o out.csv", 2, "output is 'out.csv'", "NAME.npy"),
    ("embed B photos -o out.npy --shard-size 5", 2, "--shard-size is for a job", "give -o DIR"),
    ("embed B photos -o out.npy --data-dir photos", 2, "--data-dir is about a --dataset", "give one"),
    ("report", 2, "Missing argument 'FILE|FOLDER...'", "Try 'clipmlu report --help'."),
    ("report photos -o page.pdf", 2, "the report is 'page.pdf'", "ends in .html"),
    ("report nothing.json", 1, "Cannot read the report 'nothing.json'", "No such file"),
    ("report photos", 1, "Folder 'photos' holds no report", "--output"),
    ("report B/manifest.json", 1, "'B/manifest.json' is no report", "bulk job wrote"),
    ("compile photos -o new", 1, "photos", "clipmlu export"),
    ("compile graphs -o new", 1, "No bundle at 'graphs'", "clipmlu import graphs -o DIR"),
    (
        "classify transformers photos --labels a,b",
        1,
        "No bundle at 'transformers'",
        "clipmlu export local-dir:transformers",
    ),
    ("info lowered", 1, "No bundle at 'lowered'", "It holds graphs of 'clipmlu lower'"),
    ("export local-dir:photos -o new", 1, "'photos' has neither open_clip_config.json nor config.json", "no model of"),
    ("export local-dir:graphs -o new", 1, "'graphs' has neither", "clipmlu import graphs -o DIR"),
    ("export hf:./transformers -o new", 2, "model is 'hf:./transformers'", "a directory is local-dir:./transformers"),
    ("info nowhere", 1, "No bundle at 'nowhere'", "clipmlu export"),
    ("classify E photos --labels a,b", 1, "E'", "clipmlu compile"),
    ("compile E --target cpu -o B", 1, "'B' exists", "--overwrite"),
    ("compile E -o new --precision int8", 2, "precision qint8_mixed_float32 needs calibration data", "give --calib"),
    (
        "compile E -o new --precision int8 --calib demo --keep-float mlp",
        2,
        "unknown role 'mlp'",
        "'mlp_in' or 'mlp_out'",
    ),
    ("classify B photos --labels ,", 2, "No class names in the list given", "at least one is needed"),
    ("classify B photos --labels n01440764,n01443537", 2, "names in the list given are WordNet ids", "Give the words"),
    ("datasets --overwrite", 2, "--overwrite needs --write-samples", "needs --write-samples"),
    ("doctor --only casts", 2, "--only needs --probe-sdk", "--probe-sdk"),
    ("compile E/image.onnx -o new", 1, "'E/image.onnx' is an ONNX file, not a bundle", "clipmlu import E/image.onnx"),
    ("import nowhere.onnx -o new", 1, "No such file 'nowhere.onnx'", "Expected an ONNX file, or a directory"),
    ("import photos -o new", 1, "'photos' has no ONNX files", "Expected model.onnx"),
    (
        "import transformers -o new",
        1,
        "'transformers' has no ONNX files",
        "clipmlu export local-dir:transformers -o DIR",
    ),
    ("import E -o new", 1, "'E' is a bundle already", "clipmlu compile"),
    ("import photos/0.png -o new", 1, "Cannot read the graph 'photos/0.png'", "it is a picture"),
    ("import E/image.onnx -o new", 1, "'E/image.onnx' takes no texts: it is one tower", "IMAGE.onnx TEXT.onnx"),
    ("import E/image.onnx E/image.onnx -o new", 1, "both take images", "expected one of each"),
    ("import E E/image.onnx -o new", 2, "'E' and 'E/image.onnx' are given", "two ONNX files, or one directory"),
    ("import E/image.onnx E/text.onnx E/text.onnx -o new", 2, "3 files are given", "expected one with both towers"),
    ("import E/image.onnx E/text.onnx -o B", 1, "'B' exists", "--overwrite"),
    ("import E/image.onnx E/text.onnx -o new --mean 1,2", 2, "'1,2' has 2 numbers", "expected red,green,blue"),
    ("import E/image.onnx E/text.onnx -o new --image-size big", 2, "'big' is no size", "HEIGHTxWIDTH"),
    ("import E/image.onnx E/text.onnx -o new --image-size 16", 2, "image size is 16 x 16", "takes 8 x 8"),
    ("import E/image.onnx E/text.onnx -o new --context-length 77", 2, "context length is 77", "takes 32 token ids"),
    ("import E/image.onnx E/text.onnx -o new --tokenizer photos", 1, "No tokenizer at 'photos'", "tokenizer.json"),
    ("import E/image.onnx E/text.onnx -o new --image-output embeds", 1, "image output is 'embeds'", "'image_embeds'"),
    ("lower B -o new", 1, "'B' is compiled already", "give the exported bundle"),
    ("lower E", 2, "Missing option '-o' / '--output'", "Try 'clipmlu lower --help'."),
    ("lower E --for mlo -o new", 2, "'--for': 'mlo' is not one of mlu", "Did you mean 'mlu'?"),
    ("lower E --text-rows 9 -o new", 2, "text rows are about the fused graph", "give --layout joint"),
    ("lower E -o B --overwrite", 1, "'B' exists and is not a folder of lowered graphs", "another path"),
    ("emulate --compa -- python", 2, "No such option '--compa'", "Did you mean '--compat'?"),
    ("emulate --compat", 2, "Missing argument 'COMMAND [ARGUMENTS]...'", "Try 'clipmlu emulate --help'."),
    ("index", 2, "the output is not given", "the folder of the index (-o)"),
    ("index photos", 1, "'photos' is not the folder of a job", "clipmlu embed BUNDLE IMAGES -o DIR"),
    ("index nowhere", 1, "'nowhere' does not exist", "the folder of a job"),
    ("index rows.npy --dtype int8", 2, "'--dtype': 'int8' is not one of float32, float16", "--help'."),
    ("index rows.npy --recall 0.9", 2, "recall is for an approximate index", "give approximate"),
    ("index rows.npy -o photos", 1, "'photos' exists and is not an index", "another path"),
    ("search photos dog", 1, "'photos' holds no index", "clipmlu index"),
    ("search photos", 2, "there is no query", "such as 'a dog on a beach'"),
    ("search nowhere dog", 1, "Index 'nowhere' does not exist", "clipmlu index"),
    ("search photos dgo.png", 1, "'dgo.png' looks like an image file", "--text 'dgo.png'"),
    ("search photos photos/1.png", 1, "looks like an image file", "Did you mean 'photos/0.png'?"),
    ("search photos dog --weight 1,2", 2, "No such option '--weight'", "'--weights'"),
    ("search photos dog --overwrite", 2, "overwrite is for a contact sheet", "give html"),
    ("search photos --queries-from none.txt", 1, "'none.txt'", "list of queries"),
    ("search photos dog -k 0", 2, "'-k' / '--top-k': 0 is not in the range x>=1", "--help'."),
    ("emulate nosuchprogram", 127, "Cannot run 'nosuchprogram'", "clipmlu emulate -- python"),
]


@pytest.fixture
def _place(tmp_path: Path, exported: ExportedBundle, compiled: CompiledBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exported.path.rename("E")
    compiled.path.rename("B")
    Path("photos").mkdir()
    picture(0).save("photos/0.png")
    np.save("rows.npy", np.ones((2, 4), np.float32))
    for path in ("graphs/onnx/model.onnx", "transformers/config.json", "lowered/lowered.json", "lowered/image.onnx"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()


@pytest.mark.usefixtures("_place")
@pytest.mark.parametrize(("line", "code", "what", "remedy"), MISTAKES)
def test_a_mistake_is_answered_in_one_line(
    run: Run, tmp_path: Path, line: str, code: int, what: str, remedy: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    found, told = run(*shlex.split(line))
    assert (found, told.startswith("clipmlu: ")) == (code, True), told
    assert what in told
    assert remedy in told
    assert sorted(tmp_path.rglob("*")) == before
