"""The list of models, read without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clipmlu.errors import UnknownNameError
from clipmlu.export import catalog
from clipmlu.export.model_names import model_of_hub_id, near_models
from clipmlu.export.options import ExportOptions
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.source import resolve_source

pytest.importorskip("open_clip", reason="needs the export extra (open_clip)", exc_type=ImportError)
pytestmark = pytest.mark.torch


def test_list_equals_open_clips_own() -> None:
    with quiet_libraries():
        import open_clip

        imported = catalog._imported_table()
    assert list(catalog.list_models()) == ["demo", *open_clip.list_models()]
    assert catalog._pretrained() == imported
    assert catalog.list_models()["ViT-B-32"][0] == "openai"


def test_listing_imports_neither_torch_nor_open_clip() -> None:
    code = (
        "import sys; from clipmlu.export.catalog import list_models; assert list_models()['RN50'];"
        "print([name for name in ('torch', 'open_clip', 'onnx', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_table_in_another_form_is_imported_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = catalog._pretrained()
    monkeypatch.setattr(catalog.ast, "parse", lambda _text: (_ for _ in ()).throw(SyntaxError()))
    with quiet_libraries():
        assert catalog._pretrained.__wrapped__() == expected


def test_openai_spelling_is_understood() -> None:
    assert resolve_source("ViT-B/32::openai", ExportOptions()).name == "ViT-B-32"
    assert catalog.find_weights("ViT-B-32", "OpenAI").quick_gelu
    assert catalog.find_weights("ViT-B-32", "laion2b-s34b-b79k").tag == "laion2b_s34b_b79k"


def test_unknown_model_names_the_close_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown model 'ViT-B32'. Did you mean 'ViT-B-32'\?.*clipmlu models"):
        resolve_source("ViT-B32", ExportOptions())


def test_unknown_tag_names_the_close_ones_and_all_others() -> None:
    with pytest.raises(
        UnknownNameError,
        match=r"Unknown pretrained tag 'opnai'. Did you mean 'openai'\?.*yfcc15m.*clipmlu models RN50",
    ) as caught:
        catalog.find_weights("RN50", "opnai")
    assert caught.value.known == ("openai", "yfcc15m", "cc12m")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("vit b32", ["ViT-B-32"]),
        ("ViT-B32", ["ViT-B-32"]),
        ("ViT_B_32", ["ViT-B-32"]),
        ("clip-vit-b32", ["ViT-B-32"]),
        ("ViT-B-32-openai", ["ViT-B-32::openai"]),
        ("ViT-L/14@336px", ["ViT-L-14-336"]),
        ("siglip so400m", ["ViT-SO400M-14-SigLIP"]),
        ("siglip2 base patch16 512", ["ViT-B-16-SigLIP2-512"]),
        ("convnext base", ["convnext_base"]),
        ("demoo", ["demo"]),
        ("zebra", []),
    ],
)
def test_near_misses_are_compared_by_parts(given: str, meant: list[str]) -> None:
    assert near_models(given) == meant


def test_a_given_tag_is_kept() -> None:
    assert near_models("vit b32", "openai") == ["ViT-B-32::openai"]


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [
        ("openai/clip-vit-base-patch32", "ViT-B-32::openai"),
        ("https://huggingface.co/openai/clip-vit-large-patch14-336", "ViT-L-14-336::openai"),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "ViT-B-32::laion2b_s34b_b79k"),
        ("timm/ViT-SO400M-14-SigLIP-384", "ViT-SO400M-14-SigLIP-384::webli"),
        ("google/siglip-base-patch16-224", "ViT-B-16-SigLIP::webli"),
        ("google/siglip2-so400m-patch16-512", "ViT-SO400M-16-SigLIP2-512::webli"),
        ("google/siglip-base-patch16-256-multilingual", "ViT-B-16-SigLIP-i18n-256::webli"),
        ("google/vit-base-patch16-224", None),
        ("ViT-B/32", None),
    ],
)
def test_ids_of_the_hub_name_models_of_open_clip(hub_id: str, name: str | None) -> None:
    assert model_of_hub_id(hub_id) == name
    if name is not None:
        assert str(resolve_source(hub_id, ExportOptions()).identity) == name
        assert resolve_source(hub_id, ExportOptions(random_weights=True)).name == name.partition("::")[0]


def test_a_hub_id_that_only_transformers_can_read_is_open_clips_model_with_the_prefix_too() -> None:
    assert str(resolve_source("hf-hub:openai/clip-vit-base-patch32", ExportOptions()).identity) == "ViT-B-32::openai"
    assert resolve_source("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ExportOptions()).repo is not None


def test_recommended_tags_are_three_with_openais_first() -> None:
    tags = catalog.list_models()["ViT-B-32"]
    assert catalog.recommended_tags(tags)[:2] == ["openai", "datacomp_xl_s13b_b90k"]
    assert len(catalog.recommended_tags(tags)) == 3
    assert catalog.recommended_tags(["webli"]) == ["webli"]


def test_every_model_has_one_family() -> None:
    groups = catalog.by_family(catalog.list_models())
    assert sorted(name for names in groups.values() for name in names) == sorted(catalog.list_models())
    assert next(iter(groups)) == "Demo"
    assert "ViT-B-32" in groups["CLIP, vision transformers"]
    assert groups["SigLIP"][0] == "ViT-B-16-SigLIP"
