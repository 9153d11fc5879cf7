"""Try one model of each family of open_clip: export it, compile it for each target, and compare the results.

    python tools/try_families.py [FAMILY...] [--work DIR] [--target TARGET...] [--short] [--list]

Weights are random (seed 0). Each family runs in a process of its own; what is done is kept in DIR, one JSON file a family, so
that the same command continues an interrupted one. At the end all rows are printed as a Markdown table, with - for what was not tried:
largest difference of an element of an embedding, image tower / text tower, of the export from torch, and of each compiled
bundle from the export. A text tower whose configuration is on a hub is built from one written here. --short takes the first
layers only of text towers and of open_clip's own vision transformers, a third of the time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = ("cpu", "openvino", "emulated-mlu")
_ROWS = 6  # images and texts of a comparison
_BATCH = 4  # so that a part of a batch is compared too
_SHORT = 3  # layers
_HUB_ROWS = 32_000  # of the token tables of text towers that are on a hub: a table's length changes no operator


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    """One family.

    Attributes:
        title: its name for people.
        model: the smallest model of it that open_clip has.
        text_config: the ``config.json`` of its text tower, for one that is on a hub.
        vision: sizes of the image tower that differ from the model's.
        text: sizes of the text tower that differ from the model's.
        note: how it differs from the model, for people.
    """

    title: str
    model: str
    text_config: dict[str, Any] | None = None
    vision: dict[str, Any] = dataclasses.field(default_factory=dict)
    text: dict[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""


_ROBERTA = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
    "bos_token_id": 0,
    "eos_token_id": 2,
}
_MT5 = {
    "model_type": "mt5",
    "vocab_size": _HUB_ROWS,
    "d_model": 768,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 12,
    "num_heads": 12,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
_NLLB = {
    "model_type": "m2m_100",
    "vocab_size": _HUB_ROWS,
    "d_model": 1024,
    "encoder_layers": 12,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "decoder_layers": 1,
    "decoder_attention_heads": 16,
    "decoder_ffn_dim": 4096,
    "max_position_embeddings": 1024,
    "activation_function": "relu",
    "scale_embedding": True,
    "pad_token_id": 1,
}
_BY_HAND = "text tower from a configuration written by hand"
_CUT = f"{_BY_HAND}, with {_HUB_ROWS:,} tokens"

FAMILIES = {
    "clip": Family(title="OpenAI CLIP, LAION, DataComp, MetaCLIP", model="ViT-B-32-quickgelu"),
    "dfn": Family(title="DFN", model="ViT-B-16-quickgelu"),
    "resnet": Family(title="CLIP with ResNets", model="RN50"),
    "convnext": Family(title="CLIP with ConvNeXt", model="convnext_tiny"),
    "swin": Family(title="CLIP with Swin", model="swin_base_patch4_window7_224"),
    "vit-gap": Family(title="ViT with average pooling", model="vit_medium_patch16_gap_256"),
    "vit-relpos": Family(title="ViT with relative positions", model="vit_relpos_medium_patch16_cls_224"),
    "coca": Family(title="CoCa", model="coca_ViT-B-32"),
    "siglip": Family(title="SigLIP", model="ViT-B-16-SigLIP"),
    "siglip2": Family(title="SigLIP 2", model="ViT-B-32-SigLIP2-256"),
    "clipa": Family(
        title="CLIPA", model="ViT-L-14-CLIPA", vision={"layers": 4}, note="4 of 24 layers of the image tower"
    ),
    "eva02": Family(title="EVA-02", model="EVA02-B-16"),
    "mobileclip": Family(title="MobileCLIP", model="MobileCLIP-S1"),
    "mobileclip-b": Family(title="MobileCLIP, hybrid ViT", model="MobileCLIP-B"),
    "mobileclip2": Family(title="MobileCLIP 2", model="MobileCLIP2-S0"),
    "vitamin": Family(title="ViTamin", model="ViTamin-S"),
    "pe": Family(title="Perception Encoder", model="PE-Core-T-16-384"),
    "roberta": Family(title="RoBERTa", model="roberta-ViT-B-32", text_config=_ROBERTA, note=_BY_HAND),
    "xlm-roberta": Family(
        title="XLM-RoBERTa",
        model="xlm-roberta-base-ViT-B-32",
        text_config={**_ROBERTA, "model_type": "xlm-roberta", "vocab_size": _HUB_ROWS},
        note=_CUT,
    ),
    "mt5": Family(title="mT5", model="mt5-base-ViT-B-32", text_config=_MT5, note=_CUT),
    "nllb": Family(
        title="NLLB-CLIP", model="nllb-clip-base", text_config=_NLLB, note=f"{_CUT} and 1 layer in the unused decoder"
    ),
}
"""The families by their short names, cheap and common ones first."""


def shortened(family: Family) -> Family:
    """Return a family with the first layers only where its configuration gives their number."""
    from clipmlu.export.catalog import read_config

    config = read_config(family.model)
    vision = family.vision
    if isinstance(config["vision_cfg"].get("layers"), int):
        vision = {**vision, "layers": _SHORT}
    towers = "text tower" if vision is family.vision else "towers"
    text_config = family.text_config
    if text_config is not None:
        keys = text_config.keys() & {"num_hidden_layers", "num_layers", "encoder_layers"}
        text_config = {**text_config, **dict.fromkeys(keys, _SHORT)}
    note = f"{towers} with {_SHORT} layers"
    return dataclasses.replace(
        family,
        text_config=text_config,
        vision=vision,
        text={} if text_config is not None else {**family.text, "layers": _SHORT},
        note=f"{family.note}; {note}" if family.note and "layers" not in family.note else note,
    )


def write_model(family: Family, folder: Path) -> str:
    """Return MODEL for ``clipmlu export``: open_clip's name, or a directory written at ``folder`` for what differs from it."""
    if family.text_config is None and not family.vision and not family.text:
        return family.model
    from clipmlu.export.catalog import read_config

    config = read_config(family.model)
    config["vision_cfg"] |= family.vision
    config["text_cfg"] |= family.text
    if "multimodal_cfg" in config:  # of CoCa, whose decoder embeds nothing, and is built all the same
        config["multimodal_cfg"] |= family.text
    folder.mkdir(parents=True, exist_ok=True)
    if family.text_config is not None:
        config["text_cfg"]["hf_model_name"] = "text-tower"
        (folder / "text-tower").mkdir(exist_ok=True)
        (folder / "text-tower" / "config.json").write_text(json.dumps(family.text_config))
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    return f"local-dir:{folder}"


def _export(family: Family, folder: Path) -> dict[str, Any]:
    import onnx

    from clipmlu import ExportOptions, export_model

    options = ExportOptions(random_weights=True, offline=True, overwrite=True)
    bundle = export_model(
        write_model(family, folder / "model"), folder / "exported", options, on_note=lambda _line: None
    )
    manifest = bundle.manifest
    differences = {
        tower: max(record.max_abs_diff for record in manifest.export.parity if record.tower == tower)
        for tower in manifest.towers
    }
    graphs = {
        tower: onnx.load(str(bundle.tower_path(tower)), load_external_data=False).graph for tower in manifest.towers
    }
    return {
        **differences,
        "parameters": {
            name: sum(int(np.prod(each.dims)) for each in graph.initializer) for name, graph in graphs.items()
        },
        "operators": {name: sorted({node.op_type for node in graph.node}) for name, graph in graphs.items()},
        "activation": manifest.activation,
        "tools": manifest.tool_versions,
    }


def _compile(target: str, folder: Path) -> dict[str, Any]:
    from clipmlu import CompileOptions, Encoder, compile_bundle
    from clipmlu.backends import SessionOptions
    from clipmlu.backends.onnxruntime import OnnxRuntimeSession
    from clipmlu.bundle.directory import open_exported
    from clipmlu.data.tokenizer import Tokenizer
    from clipmlu.export.checks import draw_images
    from clipmlu.export.tokenizers import TokenSampler
    from clipmlu.graph.parity import measure_difference

    exported = open_exported(folder / "exported", verify=False)
    generator = np.random.default_rng(0)
    tokenizer = Tokenizer.load(exported.tokenizer_path, exported.manifest.tokenizer)
    feeds = {
        "image": draw_images(_ROWS, exported.manifest.preprocess, generator),
        "text": TokenSampler(tokenizer).draw(_ROWS, generator),
    }
    options = CompileOptions(target=target, batch_size=_BATCH, max_batch=_BATCH, check=False, overwrite=True)
    compiled = compile_bundle(exported, folder / "compiled", options)
    result: dict[str, Any] = {}
    with Encoder(compiled) as encoder:
        for tower, encode in (("image", encoder.encode_images), ("text", encoder.encode_tokens)):
            specification = exported.tower(tower)
            path = exported.tower_path(tower)
            with OnnxRuntimeSession(specification, path, tower, SessionOptions(busy_wait=False)) as session:
                expected = session.run({specification.inputs[0].name: feeds[tower]})[specification.outputs[0].name]
            result[tower] = measure_difference(expected, encode(feeds[tower])).max_abs_diff
    return result


def _stages(family: Family, folder: Path, targets: list[str]) -> dict[str, Callable[[], dict[str, Any]]]:
    """Map the stages, in their order, to functions."""
    stages: dict[str, Callable[[], dict[str, Any]]] = {"export": lambda: _export(family, folder)}
    for target in targets:
        stages[target] = lambda target=target: _compile(target, folder)
    return stages


def _read_row(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def _write_row(path: Path, row: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(row, indent=1))
    part.replace(path)


def _run_one(name: str, work: Path, targets: list[str], *, short: bool) -> None:
    """Run the stages of a family that its row lacks, and write the row after each."""
    family = shortened(FAMILIES[name]) if short else FAMILIES[name]
    path, folder = work / f"{name}.json", work / name
    row = {"family": name, "title": family.title, "model": family.model, "note": family.note, **_read_row(path)}
    for stage, run in _stages(family, folder, targets).items():
        if stage in row:
            continue
        if stage != "export" and "error" in row["export"]:
            break
        started = time.process_time()
        print(f"{name}: {stage}", file=sys.stderr, flush=True)
        try:
            result = run()
        except Exception as error:  # the table is of what happens, whatever it is
            result = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:400]}
        row[stage] = {**result, "cpu_seconds": round(time.process_time() - started, 1)}
        _write_row(path, row)
    shutil.rmtree(folder, ignore_errors=True)


def _missing(row: dict[str, Any], targets: list[str]) -> str | None:
    """Return the first stage that a row lacks."""
    wanted = ["export"] if "error" in row.get("export", {}) else ["export", *targets]
    return next((stage for stage in wanted if stage not in row), None)


def _run_in_process(name: str, work: Path, targets: list[str], *, short: bool = False) -> None:
    """Run a family in a process; a stage that ends the process is recorded, and the next one goes on."""
    path = work / f"{name}.json"
    while (stage := _missing(_read_row(path), targets)) is not None:
        command = [
            sys.executable,
            __file__,
            name,
            "--one",
            "--work",
            str(work),
            "--target",
            *targets,
            *["--short"] * short,
        ]
        status = subprocess.run(command, check=False).returncode  # noqa: S603 - this file
        row = _read_row(path)
        if status and _missing(row, targets) == stage:
            _write_row(path, {**row, stage: {"error": f"the process ended with status {status}"}})


def render_table(rows: list[dict[str, Any]], targets: list[str]) -> str:
    """Return the rows as a Markdown table.

    Args:
        rows: the content of the families' files.
        targets: the targets, in the order of the columns.
    """
    lines = [
        f"| family | model | parameters, millions | export | {' | '.join(f'`{target}`' for target in targets)} |",
        f"|---|---|---|---|{'---|' * len(targets)}",
    ]
    for row in rows:
        counts = row.get("export", {}).get("parameters", {})
        size = " / ".join(f"{count / 1e6:.0f}" for count in counts.values())
        note = f" ({row['note']})" if row["note"] else ""
        cells = [f"{row['title']}", f"`{row['model']}`{note}", size, _cell(row.get("export"))]
        lines.append(f"| {' | '.join(cells + [_cell(row.get(target)) for target in targets])} |")
    return "\n".join(lines)


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    if "error" in result:
        return f"no: {result['error'].replace('|', '/')}"
    return f"{result['image']:.0e} / {result['text']:.0e}"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="FAMILY", help="short names; all families if left out")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "clipmlu-families")
    parser.add_argument("--target", nargs="+", default=list(TARGETS), choices=TARGETS)
    parser.add_argument("--short", action="store_true", help="the first layers only, where the configuration tells")
    parser.add_argument("--list", action="store_true", help="list the short names")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = sorted(set(options.names) - FAMILIES.keys())
    if unknown:
        parser.error(f"there is no family '{unknown[0]}'; known: {', '.join(FAMILIES)}")
    if options.list:
        print("\n".join(f"{name}: {family.title}, {family.model}" for name, family in FAMILIES.items()))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    if options.one:
        _run_one(options.names[0], options.work, options.target, short=options.short)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    for name in options.names or FAMILIES:
        _run_in_process(name, options.work, options.target, short=options.short)
    rows = [
        {"title": family.title, "model": family.model, "note": family.note} | _read_row(options.work / f"{name}.json")
        for name, family in FAMILIES.items()
    ]
    print(render_table(rows, options.target))


if __name__ == "__main__":
    main()
