"""The two sides of a comparison: bundles of the same model, each with its runnable graphs."""

from __future__ import annotations

import dataclasses
import os

from clipmlu.backends import SessionOptions, get_backend
from clipmlu.backends.provenance import Provenance, backends_of, make_provenance
from clipmlu.bundle.directory import Bundle, CompiledBundle, ExportedBundle, open_bundle
from clipmlu.bundle.manifest import TOKENIZER_NAME, Compilation, Manifest, SeenData, emulated_mark
from clipmlu.bundle.runnable import RunnableModel
from clipmlu.compile.plan import DEFAULT_BATCH_SIZE
from clipmlu.embed.encoder import Encoder
from clipmlu.errors import BundleError
from clipmlu.file_names import name_from_path
from clipmlu.graph.index import EXTERNAL_DATA_BYTES
from clipmlu.specs import Precision, QuantisationOptions, Spec, TowerName

EMULATED = "magicmind-emulated"
_CPU = ("onnxruntime", "openvino")  # both run the same files
_ANY_BATCH = 1 << 16  # canonical graphs support any batch size


class SideFacts(Spec, frozen=True, kw_only=True):
    """Facts of one side.

    Attributes:
        path: the bundle's directory.
        kind: ``exported`` for a float source, ``compiled`` for a bundle of a target.
        provenance: its digest, target and versions; a float source runs in float32 on the CPU.
        quantisation: options of its quantisation, or None.
    """

    path: str
    kind: str
    provenance: Provenance
    quantisation: QuantisationOptions | None

    def describe(self) -> str:
        """Describe the side in a few words."""
        if self.kind == "exported":
            return "float source"
        origin = self.provenance
        precision = "" if origin.precision is None else f" {origin.precision.value}"
        return f"{origin.target}{precision}{emulated_mark(origin.emulated)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Side:
    """One bundle of a comparison.

    Attributes:
        given: the bundle.
        runs: its runnable graphs; for an exported bundle the canonical graphs on the CPU, unchanged.
    """

    given: ExportedBundle | CompiledBundle
    runs: RunnableModel

    def describe(self, device: int) -> SideFacts:
        """Return its facts for a report, for a run on the card with this index."""
        facts = self.runs.compilation
        return SideFacts(
            path=name_from_path(self.given.path),
            kind=self.given.kind,
            provenance=make_provenance(
                self.given, facts.target, facts.precision, backends_of(facts), (device,), packages=("onnxruntime",)
            ),
            quantisation=facts.quantisation,
        )

    @property
    def source_digest(self) -> str:
        """Digest of the exported bundle that it is, or that it was compiled from."""
        return self.runs.compilation.source_digest

    @property
    def seen(self) -> SeenData:
        """The images and prompts of its calibration and search."""
        return (
            self.given.calibration_data() if isinstance(self.given, CompiledBundle) else SeenData(images=(), prompts=())
        )

    def fixed_rows(self, tower: TowerName) -> int | None:
        """Return the fixed number of rows of a tower's batches, or None if it is dynamic."""
        size = self.given.tower(tower).inputs[0].shape[0]
        return size if isinstance(size, int) else None

    def encoder(self, threads: int = 0, device: int = 0) -> Encoder:
        """Open an encoder; the device is used for cards only."""
        has_cards = get_backend(self.runs.compilation.backend).has_cards
        options = SessionOptions(threads=threads, device=device if has_cards else 0, busy_wait=False)
        return Encoder(self.runs, options, check_results=False)


def open_side(bundle: str | os.PathLike[str] | Bundle) -> Side:
    """Open a bundle of either kind.

    Raises:
        BundleError: there is no bundle, or its files differ from the manifest.
    """
    given = bundle if isinstance(bundle, Bundle) else open_bundle(bundle)
    assert isinstance(given, (ExportedBundle, CompiledBundle)), "there are no others"
    return Side(given=given, runs=given.runnable if isinstance(given, CompiledBundle) else float_model(given))


def hidden_reason(bundle: ExportedBundle | CompiledBundle, tower: TowerName) -> str | None:
    """Return a sentence why the inner tensors of a tower cannot be read, or None if they can."""
    if isinstance(bundle, CompiledBundle):
        placement = bundle.compilation.placement(tower)
        backend = placement.backend
        if placement.precision is Precision.FORCE_BFLOAT16:
            return (
                f"The {tower} tower of '{bundle.path}' is computed in bfloat16 by '{backend}' alone, which does not expose intermediate tensors: "
                "only its outputs and predictions are compared."
            )
        if backend not in (*_CPU, EMULATED):
            return (
                f"The {tower} tower of '{bundle.path}' is a model file of '{backend}', whose intermediate tensors cannot be read: "
                "only its outputs and predictions are compared."
            )
    file = bundle.tower(tower).file
    size = sum(record.size for name, record in bundle.manifest.files.items() if name.startswith(file))
    if size > EXTERNAL_DATA_BYTES:
        return (
            f"The {tower} tower of '{bundle.path}' has {size / 1e9:.1f} GB, too many to read its intermediate tensors: "
            "only its outputs and predictions are compared."
        )
    return None


def float_model(exported: ExportedBundle) -> RunnableModel:
    """Return an exported bundle's own graphs, to run in float32 on the CPU; nothing is copied."""
    facts = Compilation(
        target="cpu",
        backend="onnxruntime",
        precision=Precision.FORCE_FLOAT32,
        dynamic_shape=True,
        batch_size=DEFAULT_BATCH_SIZE,
        max_batch=_ANY_BATCH,
        emulated=False,
        source_digest=exported.digest,
        parity=(),
    )
    return RunnableModel(
        path=exported.path,
        tokenizer_path=exported.tokenizer_path,
        facts=exported.manifest,
        towers=exported.manifest.towers,
        compilation=facts,
        files=exported.manifest.files,
    )


def check_same_model(measured: Side, reference: Side) -> None:
    """Check that both sides are of the same model.

    Raises:
        BundleError: they are not; the message gives the difference.
    """
    sides = (measured, reference)
    if measured.source_digest == reference.source_digest:
        return
    named = [f"'{name_from_path(side.given.path)}'" for side in sides]
    exported = [isinstance(side.given, ExportedBundle) for side in sides]
    layouts = {side.given.manifest.layout for side in sides}
    if exported[0] != exported[1] and len(layouts) == 1:
        compiled, source = named if exported[1] else named[::-1]
        raise BundleError(
            f"Bundle {compiled} was not compiled from {source}, but from another export, so their tensors do not correspond. "
            "Give the exported bundle that it was compiled from, or compile that one again."
        )
    manifests = [side.given.manifest for side in sides]
    models = [str(manifest.model) for manifest in manifests]
    if models[0] != models[1]:
        raise BundleError(
            f"Bundles {named[0]} and {named[1]} hold different models, '{models[0]}' and '{models[1]}'; give two bundles of one."
        )
    weights = [_weights(manifest, same_graphs=len(layouts) == 1) for manifest in manifests]
    if weights[0] != weights[1]:
        raise BundleError(
            f"Bundles {named[0]} and {named[1]} hold '{models[0]}' with different weights; give two bundles of one export."
        )


def _weights(manifest: Manifest, *, same_graphs: bool) -> tuple[object, ...]:
    """Return the values that two bundles of one model share; without the text graph if their layouts differ."""
    texts = (manifest.text_id,) if same_graphs else (manifest.tokenizer, manifest.files[TOKENIZER_NAME].sha256)
    return (manifest.export.weights_digest, manifest.logit_scale, manifest.logit_bias, *texts)
