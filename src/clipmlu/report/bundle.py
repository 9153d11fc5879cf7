"""Facts of a bundle on the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from clipmlu.bundle.directory import Bundle, CompiledBundle
from clipmlu.bundle.manifest import ParityRecord, emulated_mark
from clipmlu.display import size_text
from clipmlu.file_names import name_from_path
from clipmlu.report.tables import echo_json, print_facts
from clipmlu.report.wrapping import Joined, Whole
from clipmlu.specs import MluBuild, QuantisationOptions

_FEW = ("bundle", "model", "images", "target", "precision", "batch", "quantisation", "agreement")
_FEW_OF_EXPORTED = ("bundle", "model", "layout", "images", "texts", "parity")


def show_bundle(bundle: Bundle, *, as_json: bool, verbose: bool) -> None:
    """Print a bundle's facts on stdout: in JSON and if ``verbose`` all, otherwise those that people ask for first."""
    if as_json:
        echo_json(bundle.to_dict())
        return
    few = _FEW if isinstance(bundle, CompiledBundle) else _FEW_OF_EXPORTED
    print_facts((name, value) for name, value in bundle_facts(bundle) if verbose or name in few)


def bundle_facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Yield the facts of a bundle for display, as (name, value) pairs."""
    manifest = bundle.manifest
    yield "bundle", Joined(Whole(name_from_path(bundle.path)), f"({bundle.kind}, {size_text(bundle.size_bytes)})")
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
    yield "target", f"{facts.target} ({facts.backend}){emulated_mark(facts.emulated)}"
    yield "precision", facts.precision.value
    yield (
        "batch",
        f"1..{facts.max_batch}, preferably {facts.batch_size}"
        if facts.dynamic_shape
        else f"exactly {facts.batch_size}",
    )
    yield (
        "input",
        "uint8 pixels, normalised in the graph" if facts.uint8_input else "float32 pixels, normalised before",
    )
    if facts.text_tower is not None:
        yield (
            "text tower",
            f"{facts.text_tower.target} ({facts.text_tower.backend}), {facts.text_tower.precision.value}",
        )
    if facts.mlu is not None:
        yield "built for", _archs_text(facts.mlu)
    if facts.quantisation is not None:
        how = facts.quantisation
        yield (
            "quantisation",
            f"{how.granularity} weights, {how.activation} activations, {_algorithm_text(how)} calibration",
        )
        if how.is_smoothed:
            smoothed = sum(len(record.smoothing) for record in facts.quantised.values())
            yield "smoothing", f"{how.smoothing_text}: {smoothed} tensors smoothed"
        if how.weight_rounding != "nearest":
            rounded = sum(len(record.rounded) for record in facts.quantised.values())
            yield "weight rounding", f"{how.weight_rounding}: {rounded} weights"
        if how.keep_float:
            yield "kept in float", ", ".join(how.keep_float)
    for name, record in facts.quantised.items():
        share = record.quantised_macs / record.macs if record.macs else 0.0
        tensors = f", {len(record.tensors)} tensors" if record.tensors else ", tensors not reported by the SDK"
        yield f"{name} in integers", f"{100 * share:.1f} % of the multiply-accumulate operations{tensors}"
    if facts.calibration is not None:
        data = facts.calibration
        yield (
            "calibration",
            f"{data.samples} images of {data.dataset}, {data.split}, seed {data.seed}; {data.texts} texts; digest {data.digest[:12]}",
        )
    same = "" if facts.agreement is None else f"; same class as in float32 for {100 * facts.agreement:.1f} %"
    yield "agreement", _parity_text(facts.parity) + same if facts.parity else "not checked"


def _algorithm_text(how: QuantisationOptions) -> str:
    return f"{how.algorithm} {how.percentile:g}" if how.algorithm == "percentile" else how.algorithm


def _archs_text(mlu: MluBuild) -> str:
    return ", ".join(
        f"{arch} ({', '.join(map(str, counts))} clusters)" if counts else arch for arch, counts in mlu.archs.items()
    )


def _parity_text(records: tuple[ParityRecord, ...]) -> str:
    worst: dict[str, float] = {}
    for record in records:
        worst[record.tower] = max(worst.get(record.tower, 0.0), record.max_abs_diff)
    return ", ".join(f"{tower} {difference:.1e}" for tower, difference in worst.items()) + " max abs difference"
