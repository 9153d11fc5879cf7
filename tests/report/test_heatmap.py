"""The matrix behind the heat map, and the files that are drawn of it."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from clipmlu.errors import MissingDependencyError, OptionError
from clipmlu.graph.roles import Role
from clipmlu.measure.compare.nodes import NodeComparison, TowerComparison, hidden_tower
from clipmlu.report.heatmap import check_drawable, draw_heatmap, matrix_of

pytest.importorskip("matplotlib", reason="needs the report extra")


def node(role: Role | None, block: int | None, snr_db: float | None, **changes: Any) -> NodeComparison:
    facts: dict[str, Any] = {
        "tensor": f"{role}-{block}",
        "node": "n",
        "kind": "operator",
        "elements": 1,
        "cosine": 1.0,
        "max_abs_diff": 0.0 if snr_db is None else 0.1,
        "minimum": 0.0,
        "maximum": 1.0,
        "reference_minimum": 0.0,
        "reference_maximum": 1.0,
        "float16_share": 0.1,
        "non_finite": 0,
        "reference_non_finite": 0,
        "quantised_range": None,
        "outside": None,
        "diverges": False,
    }
    return NodeComparison(role=role, block=block, snr_db=snr_db, **{**facts, **changes})


def tower(*nodes: NodeComparison) -> TowerComparison:
    return TowerComparison(rows=1, nodes=nodes, first_divergence=None, smoothed_apart=0, absent=0, hidden=None)


SMALL = tower(
    node("patch_embedding", None, 41.2),
    node("qkv", 0, 30.4),
    node("qkv", 0, 25.6),  # the worst of several stands for them
    node("mlp_out", 0, None),
    node("qkv", 1, None, non_finite=3, max_abs_diff=1.0),
    node("qkv", 1, 12.0, kind="input"),  # no result of an operator
    node(None, 1, 11.0, kind="sum"),
)


def test_matrix_holds_the_worst_operator_of_each_block_and_role() -> None:
    matrix = matrix_of(SMALL)
    assert matrix.rows == (None, 0, 1)
    assert matrix.columns == ("patch_embedding", "qkv", "mlp_out")
    assert {place: cell.text for place, cell in matrix.cells.items()} == {
        (None, "patch_embedding"): "41",
        (0, "qkv"): "26",
        (0, "mlp_out"): "=",
        (1, "qkv"): "!",
    }


def test_svg_shows_the_numbers_of_the_matrix_and_nothing_where_there_is_no_operator() -> None:
    content = draw_heatmap({"image": SMALL}, "tiny\ncpu qint8 (emulated)", "svg")
    root = ElementTree.fromstring(content)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert [text for text in texts if text in ("41", "26", "=", "!")] == ["41", "26", "=", "!"]
    for expected in ("image tower", "outside", "0", "1", "qkv", "tiny", "cpu qint8 (emulated)"):
        assert expected in texts
    assert content == draw_heatmap({"image": SMALL}, "tiny\ncpu qint8 (emulated)", "svg"), "the same bytes each time"


def test_png_is_a_picture_with_a_white_cell_where_nothing_is() -> None:
    content = draw_heatmap({"image": SMALL}, "t", "png")
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "PNG"
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (pixels == (0xD6, 0x27, 0x28)).all(axis=2)
    rows, columns = np.nonzero(red)
    height = rows.max() - rows.min() + 1
    middle = int(columns.mean())
    above = pixels[rows.min() - height // 2, columns.min() + 3]  # block 0, qkv: coloured
    beside = pixels[rows.min() + 3, columns.max() + (columns.max() - columns.min()) // 2]  # block 1, mlp_out: nothing
    assert red[rows.min() + 2, middle]
    assert above.min() < 200
    assert beside.tolist() == [255, 255, 255]


def test_large_models_fit_and_both_towers_have_cells_of_one_size() -> None:
    roles: tuple[Role, ...] = ("qkv", "attention_scores", "attention_values", "attention_output", "mlp_in", "mlp_out")
    large = tower(*(node(role, block, 20.0 + block) for block in range(24) for role in roles))
    content = draw_heatmap({"image": large, "text": SMALL}, "large", "svg").decode()
    assert content.count(">43<") == 6
    width, height = (float(each) for each in re.findall(r'(?:width|height)="([0-9.]+)pt"', content)[:2])
    assert 500 < width < 1200
    assert 500 < height < 1000


def test_towers_that_cannot_be_seen_leave_a_note() -> None:
    content = draw_heatmap({"image": hidden_tower("why")}, "t", "svg").decode()
    assert "no inner nodes to show" in content


def test_other_files_are_refused_before_anything_is_drawn() -> None:
    with pytest.raises(OptionError, match=r"heat map is 'map\.jpg'; expected a name that ends in \.png or \.svg"):
        check_drawable(Path("map.jpg"))


def test_missing_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"Drawing a heat map needs 'matplotlib'.*clipmlu\[report\]"):
        check_drawable(Path("map.png"))
