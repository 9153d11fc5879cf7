"""Files that cannot be had: one line, at once, with a way out."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from clipmlu.errors import DownloadError
from clipmlu.export.downloads import checkpoint_names, fetch_file, is_hub_reachable
from clipmlu.export.exporter import ExportOptions, export_model

pytest.importorskip("huggingface_hub", reason="needs the export extra (huggingface_hub)", exc_type=ImportError)
pytestmark = pytest.mark.torch

CLOSED_PORT = "http://127.0.0.1:9"


def put_into_cache(cache: Path, repo: str, name: str, content: bytes) -> Path:
    """As huggingface_hub lays out its cache: refs/main names a snapshot."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    file = folder / "snapshots" / ("0" * 40) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def fetch(cache: Path, *, offline: bool = False) -> Path:
    names = checkpoint_names("")
    return fetch_file("org/name", names, cache_dir=cache, offline=offline, hint="Do this.")


def test_cached_file_needs_no_network(tmp_path: Path) -> None:
    expected = put_into_cache(tmp_path, "org/name", "open_clip_pytorch_model.bin", b"x")
    assert fetch(tmp_path, offline=True) == fetch(tmp_path) == expected


def test_offline_says_which_file_and_which_cache(tmp_path: Path) -> None:
    message = (
        rf"^'org/name/open_clip_model.safetensors' is not in the cache '{tmp_path}', and the network is off. Do this.$"
    )
    with pytest.raises(DownloadError, match=message):
        fetch(tmp_path, offline=True)


def test_hubs_own_switch_keeps_off_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # HF_HUB_OFFLINE=1, read at import
    with pytest.raises(DownloadError, match="and the network is off"):
        fetch(tmp_path)


@pytest.fixture
def closed_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub where nobody answers."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", CLOSED_PORT)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", CLOSED_PORT + "/{repo_id}/{filename}")


@pytest.mark.usefixtures("closed_port")
def test_refused_connection_is_reported_at_once(tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(
        DownloadError, match=r"^Cannot download 'org/name/open_clip_model.safetensors': .*refused.*\. Do this.$"
    ):
        fetch(tmp_path)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("ViT-B-32::openai", "timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors"),
        ("hf-hub:org/name", "org/name/open_clip_config.json"),
        ("roberta-ViT-B-32::laion2b_s12b_b32k", "roberta-base/config.json"),
    ],
)
def test_export_without_the_files_says_how_to_provide_them(model: str, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=f"'{wanted}' is not in the cache") as caught:
        export_model(model, tmp_path / "out", ExportOptions(offline=True, cache_dir=tmp_path / "cache"))
    message = str(caught.value)
    assert "\n" not in message
    assert "Copy the file into that cache" in message or "copy it into that cache" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ("", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
        ("open_clip_pytorch_model.bin", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
        ("weights.bin", ("weights.safetensors", "weights.bin")),
        ("weights.npz", ("weights.npz",)),
    ],
)
def test_safetensors_are_preferred(listed: str, names: tuple[str, ...]) -> None:
    assert checkpoint_names(listed) == names


@pytest.mark.usefixtures("closed_port")
def test_model_in_the_cache_is_exported_without_a_network(tiny_model: Callable[[str], Path], tmp_path: Path) -> None:
    folder = tiny_model("vit")
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "org/words"
    cache = tmp_path / "cache"
    put_into_cache(cache, "org/name", "open_clip_config.json", json.dumps(config).encode())
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    put_into_cache(cache, "org/name", "open_clip_model.safetensors", weights)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        put_into_cache(cache, "org/words", name, (folder / name).read_bytes())
    assert not is_hub_reachable("org/words", "tokenizer.json")
    start = time.monotonic()
    bundle = export_model("hf-hub:org/name", tmp_path / "out", ExportOptions(cache_dir=cache))
    assert time.monotonic() - start < 60, "retries would take half a minute for each file"
    assert str(bundle.manifest.model) == "hf-hub:org/name"
    assert not bundle.manifest.tokenizer.stand_in
    local = export_model(f"local-dir:{folder}", tmp_path / "local")
    assert bundle.manifest.export.weights_digest == local.manifest.export.weights_digest
    assert bundle.manifest.files == local.manifest.files
