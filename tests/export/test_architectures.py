"""Full-size architectures with random weights: that they export at all, and that the exporter's own gate lets them through."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from clipmlu.export.exporter import ExportOptions, export_model

pytest.importorskip("open_clip", reason="needs the export extra (open_clip)", exc_type=ImportError)
pytestmark = [pytest.mark.torch, pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "activation", "embedding_dim", "context_length"),
    [
        ("ViT-B-32-quickgelu", "quick_gelu", 512, 77),
        # The same architectures as above, or as the tiny models that the other tests export, and minutes longer.
        pytest.param("RN50", "gelu", 1024, 77, marks=pytest.mark.full_size),
        pytest.param("ViT-B-16", "gelu", 512, 77, marks=pytest.mark.full_size),
        pytest.param("ViT-L-14", "gelu", 768, 77, marks=pytest.mark.full_size),
        pytest.param("convnext_base", "gelu", 512, 77, marks=pytest.mark.full_size),
        pytest.param("ViT-B-16-SigLIP", "gelu", 768, 64, marks=pytest.mark.full_size),
    ],
)
def test_both_towers_pass_the_gate(
    name: str, activation: str, embedding_dim: int, context_length: int, tmp_path: Path
) -> None:
    bundle = export_model(name, tmp_path / "out", ExportOptions(random_weights=True, seed=3, offline=True))
    manifest = bundle.manifest
    assert (manifest.activation, manifest.embedding_dim) == (activation, embedding_dim)
    assert manifest.tokenizer.context_length == context_length
    assert str(manifest.model) == f"{name} (random weights, seed 3)"
    assert (manifest.logit_bias is not None) == ("SigLIP" in name)
    assert {1, 3} <= {record.batch_size for record in manifest.export.parity} or {1, 5} <= {
        record.batch_size for record in manifest.export.parity
    }
    assert max(record.max_abs_diff for record in manifest.export.parity) <= 1e-5
    operators = [
        node.op_type for node in onnx.load(str(bundle.tower_path("text")), load_external_data=False).graph.node
    ]
    assert operators.count("LayerNormalization") >= 25


@pytest.mark.full_size
def test_joint_graph_of_a_full_model_passes_the_gate(tmp_path: Path) -> None:
    bundle = export_model(
        "ViT-B-32", tmp_path / "out", ExportOptions(random_weights=True, layout="joint", offline=True)
    )
    assert set(bundle.manifest.towers) == {"joint"}
    assert all(record.max_abs_diff <= record.allowed_abs_diff for record in bundle.manifest.export.parity)
