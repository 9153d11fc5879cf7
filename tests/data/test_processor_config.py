"""Preprocessing from the configuration files of the transformers library, read without it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmlu.data.preprocess import Preprocessor
from clipmlu.data.processor_config import read_processor, spec_from_processor
from clipmlu.errors import InputError, OptionError
from clipmlu.specs import PreprocessSpec

OPENAI = {  # openai/clip-vit-base-patch32 on the hub
    "crop_size": 224,
    "do_center_crop": True,
    "do_normalize": True,
    "do_resize": True,
    "feature_extractor_type": "CLIPFeatureExtractor",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "size": 224,
}
SIGLIP = {
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "SiglipProcessor",
    "resample": 2,
    "rescale_factor": 0.00392156862745098,
    "size": {"height": 384, "width": 384},
}
ALIGN = {
    "image_processor_type": "EfficientNetImageProcessor",
    "do_center_crop": True,
    "do_normalize": False,
    "include_top": False,
    "resample": 2,
    "rescale_factor": 1 / 127.5,
    "rescale_offset": True,
}
CLIP_STATISTICS = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}


def test_known_files_have_their_meaning() -> None:
    expected = PreprocessSpec(height=224, width=224, to_rgb="first", crop_rounding="down", **CLIP_STATISTICS)
    assert spec_from_processor(OPENAI) == expected
    assert spec_from_processor({"image_processor_type": "CLIPImageProcessorFast"}) == expected
    assert spec_from_processor(SIGLIP, transparency="white") == PreprocessSpec(
        height=384,
        width=384,
        mean=(0.5,) * 3,
        std=(0.5,) * 3,
        resize_mode="squash",
        interpolation="bilinear",
        to_rgb="white",
        crop_rounding="down",
    )
    chinese = {
        "image_processor_type": "ChineseCLIPImageProcessor",
        "do_center_crop": False,
        "size": {"height": 224, "width": 224},
    }
    found = spec_from_processor(chinese)
    assert (found.resize_mode, found.interpolation, found.mean) == ("squash", "bicubic", CLIP_STATISTICS["mean"])
    align = spec_from_processor(ALIGN)
    assert (align.height, align.resize_to, align.resize_mode) == (289, (346, 346), "squash")
    np.testing.assert_allclose((align.mean, align.std), 0.5, rtol=1e-12)
    larger = spec_from_processor({**OPENAI, "size": {"shortest_edge": 256}})
    assert (larger.height, larger.resize_to, larger.resize_mode) == (224, (256, 256), "shortest")
    naflex = spec_from_processor(
        {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 256, "patch_size": 16}
    )
    assert (naflex.height, naflex.width, naflex.resize_mode, naflex.interpolation) == (256, 256, "squash", "bilinear")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"do_resize": False}, "'do_resize' is off"),
        ({"do_rescale": False}, "'do_rescale' is off"),
        ({"do_center_crop": False}, "'do_center_crop' is off, so that images have no fixed size"),
        ({"resample": 0}, r"'resample' is 0 \(nearest\); expected 2 \(bilinear\) or 3 \(bicubic\)"),
        ({"resample": 1}, r"\(lanczos\)"),
        ({"resample": "bicubic"}, "'resample' is 'bicubic'"),
        ({"do_pad": True}, "the step 'do_pad' with True cannot be expressed"),
        ({"do_flip_channel_order": True}, "the step 'do_flip_channel_order'"),
        ({"crop_size": 256}, r"'crop_size' \(256, 256\) is larger than 'size' \(224, 224\)"),
        ({"size": {"longest_edge": 224}}, "'size' is {'longest_edge': 224}"),
        ({"size": {"shortest_edge": "224"}}, "'size' is '224'; expected whole numbers"),
        ({"image_mean": [0.5, 0.5]}, "'image_mean' is .*; expected a number for each of red, green and blue"),
        ({"image_std": ["x", 1, 1]}, "'image_std' has 'x'; expected numbers"),
        ({"image_std": [0.0, 1, 1]}, "standard deviation"),
        ({"rescale_factor": -1}, "'rescale_factor' is -1"),
        ({"auto_map": {}}, "its own Python code"),
        (
            {"feature_extractor_type": "FlavaFeatureExtractor"},
            "the image processor is 'FlavaFeatureExtractor'; expected one of CLIP",
        ),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "'include_top'"),
    ],
)
def test_steps_that_cannot_be_expressed_are_refused_by_name(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        spec_from_processor({**OPENAI, **changes})


def test_nested_settings_come_first_as_in_the_library(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"does not say how images are prepared: expected preprocessor_config\.json"):
        read_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(OPENAI))
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_processor(tmp_path) == (tmp_path / "preprocessor_config.json", OPENAI)
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": SIGLIP}))
    assert read_processor(tmp_path) == (tmp_path / "processor_config.json", SIGLIP)
    (tmp_path / "processor_config.json").write_text("[")
    with pytest.raises(InputError, match=r"Cannot read the preprocessing '.*processor_config\.json'"):
        read_processor(tmp_path)


def plain(**fields: object) -> Preprocessor:
    return Preprocessor(PreprocessSpec(mean=(0.0,) * 3, std=(1.0,) * 3, **fields))  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [8, 9, 10, 11, 13, 15])
def test_central_crop_rounds_down(width: int) -> None:
    """The place of the crop, on an image that needs no resize: columns of the image, counted by hand."""
    columns = np.arange(width, dtype=np.uint8)
    image = Image.fromarray(np.broadcast_to(columns[None, :, None], (8, width, 3)).copy())
    found = plain(height=8, width=8, crop_rounding="down").pixels(image)
    assert found[0, :, 0].tolist() == list(range((width - 8) // 2, (width - 8) // 2 + 8))


def test_resize_may_be_larger_than_the_crop() -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (40, 60, 3), np.uint8))
    for mode, size in (("squash", (20, 20)), ("shortest", (30, 20))):
        resized = image.resize(size, Image.Resampling.BICUBIC)
        left = (size[0] - 16) // 2
        expected = np.asarray(resized.crop((left, 2, left + 16, 18)))
        found = plain(height=16, width=16, resize_mode=mode, crop_rounding="down", resize_to=(20, 20)).pixels(image)
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(OptionError, match=r"resized to \[8, 8\]"):
        PreprocessSpec(height=16, width=16, mean=(0.0,) * 3, std=(1.0,) * 3, resize_to=(8, 8))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "CMYK"])
def test_conversion_to_rgb_may_come_before_the_resize(mode: str) -> None:
    generator = np.random.default_rng(1)
    pixels = generator.integers(0, 256, (21, 33, 4), np.uint8)
    image = Image.fromarray(pixels, "CMYK" if mode == "CMYK" else "RGBA").convert(mode)
    if mode == "P":
        image = image.convert("RGB").convert("P")
        image.info["transparency"] = int(np.asarray(image)[3, 3])
    expected = np.asarray(image.convert("RGB").resize((16, 16), Image.Resampling.BICUBIC))
    squashed = {"height": 16, "width": 16, "resize_mode": "squash"}
    np.testing.assert_array_equal(plain(**squashed, to_rgb="first").pixels(image), expected)
    on_white = image.convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    expected = np.asarray(
        Image.alpha_composite(white, on_white).convert("RGB").resize((16, 16), Image.Resampling.BICUBIC)
    )
    if mode != "CMYK":
        np.testing.assert_array_equal(plain(**squashed, to_rgb="white").pixels(image), expected)
