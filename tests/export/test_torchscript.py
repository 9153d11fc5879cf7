"""TorchScript archives, as OpenAI publishes its weights: read without their code, and refused in one line where they do not fit."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipmlu.errors import ExportError
from clipmlu.export.architectures import matching_architectures
from clipmlu.export.exporter import ExportOptions
from clipmlu.export.loading import LoadedModel, load_model
from clipmlu.export.quiet import quiet_libraries
from clipmlu.export.source import resolve_source
from clipmlu.export.torchscript import read_script
from tiny_models import CONFIGS, EMBED_DIM, write_config

pytestmark = [pytest.mark.torch, pytest.mark.usefixtures("libraries")]

Tiny = Callable[[str], Path]
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)


def load(model: str, **options: Any) -> LoadedModel:
    given = ExportOptions(**options)
    with quiet_libraries():
        return load_model(resolve_source(model, given), given)


def refusal(model: str, **options: Any) -> str:
    with pytest.raises(ExportError) as caught:
        load(model, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@contextmanager
def quiet_tracing() -> Iterator[None]:
    """TorchScript is deprecated, and what OpenAI's files are."""
    with warnings.catch_warnings(), quiet_libraries():
        warnings.simplefilter("ignore")
        yield


def archived(path: Path) -> dict[str, Any]:
    """What torch itself reads."""
    import torch

    with quiet_tracing():
        return dict(torch.jit.load(str(path)).state_dict())


def write_archive(folder: Path, path: Path, *, openais: bool = False) -> Path:
    """Trace both towers of a model in a directory; as OpenAI's archives are: half precision, with three sizes in it."""
    import torch

    module = load(f"local-dir:{folder}").module
    side, length = int(np.ravel(module.visual.image_size)[0]), module.context_length
    if openais:
        del module.context_length, module.vocab_size
        for name, value in (("input_resolution", side), ("context_length", length), ("vocab_size", 49408)):
            module.register_buffer(name, torch.tensor(value))
    examples = {"encode_image": torch.zeros(1, 3, side, side), "encode_text": torch.ones(1, length, dtype=torch.int64)}
    with quiet_tracing():
        traced = torch.jit.trace_module(module, examples, check_trace=False)
        torch.jit.save(traced.half() if openais else traced, str(path))
    return path


@pytest.fixture(scope="module")
def archive(tiny_model: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive like OpenAI's."""
    return write_archive(tiny_model("quick-gelu"), tmp_path_factory.mktemp("openai") / "ViT-B-32.pt", openais=True)


@pytest.fixture
def plain_name(give_config: Callable[..., None]) -> str:
    """A name whose configuration is the archive's, with GELU as open_clip's ``ViT-B-32`` has it."""
    config = {key: value for key, value in CONFIGS["quick-gelu"].items() if key != "quick_gelu"}
    give_config(lambda name: {"embed_dim": EMBED_DIM, **config})
    return "ViT-B-32"


def check_equal(loaded: LoadedModel, expected: dict[str, Any]) -> None:
    import torch

    for name, tensor in loaded.module.state_dict().items():
        assert torch.equal(tensor, expected[name].to(tensor.dtype)), name


def test_openais_archive_is_read_with_quick_gelu_and_its_preprocessing(archive: Path, plain_name: str) -> None:
    loaded = load(f"{plain_name}::{archive}")
    check_equal(loaded, archived(archive))
    assert loaded.activation == "quick_gelu"
    assert loaded.preprocess.mean == OPENAI_MEAN
    activation, preprocess = loaded.notes
    assert activation.startswith(
        f"'{archive}' is loaded with QuickGELU, as 'ViT-B-32-quickgelu' has it: the TorchScript code in"
    )
    assert "as 'input_resolution' in it, which only OpenAI's own package writes, says: mean 0.4815" in preprocess


def test_plain_weights_of_an_archive_are_the_same_model(archive: Path, plain_name: str, tmp_path: Path) -> None:
    import torch

    torch.save(archived(archive), tmp_path / "state.pt")
    loaded = load(plain_name, pretrained=str(tmp_path / "state.pt"))
    assert loaded.activation == "quick_gelu"
    assert loaded.weights_digest == load(plain_name, pretrained=str(archive)).weights_digest


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_code_without_quick_gelu_tells_so(
    kind: str, tiny_model: Tiny, tmp_path: Path, give_config: Callable[..., None]
) -> None:
    path = write_archive(tiny_model(kind), tmp_path / "mine.pt")
    give_config(lambda name: {"embed_dim": EMBED_DIM, **CONFIGS[kind]})
    loaded = load("ViT-B-32", pretrained=str(path))
    check_equal(loaded, archived(path))
    assert loaded.activation == "gelu"
    assert not [line for line in loaded.notes if "GELU" in line]


def test_directory_with_gelu_and_an_archive_with_quick_gelu_gets_a_note(archive: Path, tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIGS["quick-gelu"].items() if key != "quick_gelu"}
    folder = write_config(tmp_path / "model", config)
    (folder / "model.pt").write_bytes(archive.read_bytes())
    loaded = load(f"local-dir:{folder}")
    assert loaded.activation == "quick_gelu"
    (line,) = loaded.notes
    assert "is loaded with QuickGELU, although open_clip_config.json has no 'quick_gelu': the TorchScript code" in line


def rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> Path:
    """Copy a ZIP archive with other contents."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_code_is_not_compiled(archive: Path, plain_name: str, tmp_path: Path) -> None:
    path = rewrite(archive, tmp_path / "a.pt", lambda name, data: b"raise sigmoid(" if name.endswith(".py") else data)
    with pytest.raises(RuntimeError):
        archived(path)
    check_equal(load(plain_name, pretrained=str(path)), archived(archive))


def test_other_objects_than_tensors_are_refused_and_not_made(archive: Path, plain_name: str, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    path = rewrite(
        archive, tmp_path / "a.pt", lambda name, data: pickle.dumps(Bomb()) if name.endswith("/data.pkl") else data
    )
    message = refusal(plain_name, pretrained=str(path))
    assert message.startswith(f"Cannot load the weights '{path}': its data hold the Python object 'posix.mkdir'")
    assert not (tmp_path / "ran").exists()


def cut(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[:-5000])


def flip(source: Path, target: Path) -> None:
    """Change a byte of the first storage."""
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as archive:
        entry = archive.getinfo(next(name for name in archive.namelist() if name.endswith("/data/0")))
    position = content.index(b"/data/0", entry.header_offset) + len(b"/data/0") + 200
    content[position] ^= 1
    target.write_bytes(content)


def shorten(source: Path, target: Path) -> None:
    rewrite(source, target, lambda name, data: data[:-2] if name.endswith("/data/0") else data)


def without_storage(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            if not name.endswith("/data/0"):
                new.writestr(name, old.read(name))


def doubling(source: Path, target: Path) -> None:
    """A module that holds 2**40 modules, all of them the same few."""
    module: dict[str, object] = {}
    for _ in range(40):
        module = {"left": module, "right": module}
    rewrite(source, target, lambda name, data: pickle.dumps(module) if name.endswith("/data.pkl") else data)


def far_number(source: Path, target: Path) -> None:
    """40 bytes for which Python's unpickler alone would make room for 2**24 objects, or for 2**31 of a worse file."""
    pickled = b"\x80\x02}r\xff\xff\xff\x00."
    rewrite(source, target, lambda name, data: pickled if name.endswith("/data.pkl") else data)


def repeated(source: Path, target: Path) -> None:
    """A tensor of 2**44 values, each of them the first one of its storage."""
    size, stride = b"\x8a\x06\x00\x00\x00\x00\x00\x10\x85", b"K\x00\x85"
    pickled = (
        b"\x80\x02c__torch__\nM\n)\x81}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(("
        b"X\x07\x00\x00\x00storagectorch\nHalfStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"K\x02tQK\x00" + size + stride + b"\x89}tRsb."
    )
    content = {"/data.pkl": pickled, "/data/0": b"\x00" * 4}
    rewrite(source, target, lambda name, data: content.get(name.removeprefix("ViT-B-32"), data))


def quantised(source: Path, target: Path) -> None:
    rewrite(source, target, lambda _name, data: data.replace(b"HalfStorage", b"QInt8Storage"))


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (cut, "it is a ZIP archive that is damaged or not complete. Download or copy it again"),
        (flip, "it is a TorchScript archive that is damaged: Bad CRC-32"),
        (shorten, "it is a TorchScript archive that is damaged: 'ViT-B-32/data/0' has"),
        (without_storage, "it is a TorchScript archive that is damaged: \"There is no item named 'ViT-B-32/data/0'"),
        (far_number, "it stores an object under the number 16777215"),
        (repeated, "'ViT-B-32/data/0' has 2 values, and a tensor repeats them to 17,592,186,044,416"),
        (doubling, "the names in it take more than 16,777,216 characters"),
        (quantised, "its tensors hold QInt8; expected float weights"),
    ],
)
def test_damaged_archives_are_one_line(
    damage: Callable[[Path, Path], None], expected: str, archive: Path, plain_name: str, tmp_path: Path
) -> None:
    damage(archive, tmp_path / "a.pt")
    message = refusal(plain_name, pretrained=str(tmp_path / "a.pt"))
    assert message.startswith(f"Cannot load the weights '{tmp_path / 'a.pt'}': ")
    assert expected in message


def test_damage_anywhere_loads_or_is_one_line(archive: Path, tmp_path: Path) -> None:
    content = archive.read_bytes()
    with zipfile.ZipFile(archive) as opened:
        start = opened.getinfo("ViT-B-32/data.pkl").header_offset
    generator = np.random.default_rng(0)
    for _ in range(30):
        damaged = bytearray(content)
        for position in generator.integers(start, start + 4000, 8):
            damaged[position] = int(generator.integers(256))
        (tmp_path / "a.pt").write_bytes(damaged)
        assert "\n" not in outcome(tmp_path / "a.pt")


def outcome(path: Path) -> str:
    """What is said about an archive; empty if it is read."""
    try:
        read_script(path)
    except ExportError as error:
        return str(error)
    return ""


def test_archive_of_another_model_is_named(tmp_path: Path) -> None:
    import torch

    folder = write_config(tmp_path / "model", CONFIGS["vit"])
    with quiet_tracing():
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(folder / "model.pt"))
    message = refusal(f"local-dir:{folder}")
    assert "its names do not fit" in message
    assert "2 are not the model's ('weight', 'bias'). There is no image tower in it." in message


@pytest.mark.parametrize(
    ("name", "named"),
    [("RN50", ["RN50", "RN50-quickgelu"]), ("ViT-L-14-336", ["ViT-L-14-336", "ViT-L-14-336-quickgelu"])],
)
def test_architecture_is_told_by_the_shapes_of_an_archive(name: str, named: list[str], tmp_path: Path) -> None:
    """OpenAI's sizes; one number for each tensor, stretched."""
    import open_clip
    import torch

    class Holder(torch.nn.Module):  # type: ignore[misc, unused-ignore]
        def forward(self) -> int:
            return 0

    with torch.device("meta"), quiet_libraries():
        shapes = {key: value.shape for key, value in open_clip.create_model(name, device="meta").state_dict().items()}
    root = Holder()
    for key, shape in shapes.items():
        *path, last = key.split(".")
        holder = root
        for part in path:
            if part not in dict(holder.named_children()):
                holder.add_module(part, torch.nn.Module())
            holder = holder.get_submodule(part)
        holder.register_buffer(last, torch.zeros((), dtype=torch.float16).expand(shape))
    with quiet_tracing():
        torch.jit.save(torch.jit.script(root), str(tmp_path / "a.pt"))
    read = read_script(tmp_path / "a.pt")
    assert {key: tensor.shape for key, tensor in read.items() if hasattr(tensor, "shape")} == shapes
    assert matching_architectures({key: read[key] for key in shapes}) == named
