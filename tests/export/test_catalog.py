"""The list of models, read without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from clipmlu.errors import UnknownNameError
from clipmlu.export import catalog
from clipmlu.export.quiet import quiet_libraries

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
    assert catalog.check_model_name("ViT-B/32") == "ViT-B-32"
    assert catalog.find_weights("ViT-B-32", "OpenAI").quick_gelu
    assert catalog.find_weights("ViT-B-32", "laion2b-s34b-b79k").tag == "laion2b_s34b_b79k"


def test_unknown_model_names_the_close_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown model 'ViT-B32'. Did you mean 'ViT-B-32'.*clipmlu models"):
        catalog.check_model_name("ViT-B32")


def test_unknown_tag_names_the_close_ones_and_all_others() -> None:
    with pytest.raises(
        UnknownNameError,
        match=r"Unknown pretrained tag 'opnai'. Did you mean 'openai'\?.* Model 'RN50' has .* 'yfcc15m'",
    ) as caught:
        catalog.find_weights("RN50", "opnai")
    assert caught.value.known == ("openai", "yfcc15m", "cc12m")
