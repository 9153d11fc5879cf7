"""Roles read off a graph's structure, against the module paths that the exporter recorded; the work, by hand."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from clipmlu.bundle.directory import ExportedBundle
from clipmlu.errors import CompileError, OptionError
from clipmlu.graph.lowering import lower_graph
from clipmlu.graph.operator_graph import macs_by_input
from clipmlu.graph.operators import QUANTISED
from clipmlu.graph.roles import ROLES, Operator, find_operators
from clipmlu.graph.selection import Selection, check_selections, parse_selection, select_operators
from clipmlu.specs import MODULE_KEY
from tiny_models import CONFIGS

Lowered = Callable[..., onnx.ModelProto]
Place = tuple[str, int | None]

SELF = "qkv attention_scores attention_values attention_output"
OPEN_CLIP = r"(visual\.|text\.)?transformer\.resblocks\.(?P<block>\d+)\."
TIMM = r"visual\.trunk\.(stages\.(?P<stage>\d+)\.)?blocks\.(?P<block>\d+)\."
BERT = r"text\.transformer\.encoder\.layer\.(?P<block>\d+)\."
RULES = {
    r"visual\.(conv1|bn[123]|trunk\.patch_embed\.proj|trunk\.stem\.0)": "patch_embedding",
    OPEN_CLIP + r"attn": SELF,
    OPEN_CLIP + r"mlp\.c_fc": "mlp_in",
    OPEN_CLIP + r"mlp\.c_proj": "mlp_out",
    TIMM + r"attn\.qkv": "qkv",
    TIMM + r"attn": "attention_scores attention_values",
    TIMM + r"attn\.proj": "attention_output",
    TIMM + r"mlp\.fc1": "mlp_in",
    TIMM + r"mlp\.fc2": "mlp_out",
    TIMM + r"conv_dw": "convolution",
    r"visual\.trunk\.stages\.\d\.downsample\.1": "convolution",
    r"visual\.layer(?P<stage>\d)\.(?P<block>\d+)\.(bn[123]|downsample\.1)": "convolution",
    r"visual\.attnpool": "pooling pooling pooling pooling pooling pooling",
    r"visual\.trunk\.attn_pool": "pooling pooling",
    r"visual\.trunk\.attn_pool\.(q|kv|proj|mlp\.fc1|mlp\.fc2)": "pooling",
    BERT + r"attention\.self\.(query|key|value)": "qkv",
    BERT + r"attention\.self": "attention_scores attention_values",
    BERT + r"attention\.output\.dense": "attention_output",
    BERT + r"intermediate\.dense": "mlp_in",
    BERT + r"output\.dense": "mlp_out",
    r"visual|visual\.head\.proj|text\.text_projection|text\.proj\.[02]": "projection",
}
"""Module path -> the roles of its operators, in the order of the graph."""

TOWERS = [(kind, tower) for kind in CONFIGS for tower in ("image", "text")]


@pytest.fixture(scope="module")
def lowered(tiny_bundle: Callable[..., ExportedBundle]) -> Lowered:
    """``lowered(kind, tower, batch=None)``: a graph of a tiny model, not to be changed; the tower may be ``joint``."""
    made: dict[tuple[str, str, int | None], onnx.ModelProto] = {}

    def lower(kind: str, tower: str, batch: int | None = None) -> onnx.ModelProto:
        if (kind, tower, batch) not in made:
            bundle = tiny_bundle(kind, layout="joint" if tower == "joint" else "towers")
            source = bundle.path / bundle.manifest.towers[tower].file  # type: ignore[index]
            static = None if batch is None else {"batch": batch}
            made[kind, tower, batch] = ir.to_proto(lower_graph(source, batch=static))
        return made[kind, tower, batch]

    return lower


def reference(model: onnx.ModelProto, top: list[str]) -> list[Place]:
    """(role, block) of all operators by the modules that they were exported from; ``top``: those of the model itself."""
    modules = [
        next(entry.value for entry in node.metadata_props if entry.key == MODULE_KEY)
        for node in model.graph.node
        if node.op_type in QUANTISED
    ]
    blocks: dict[str, tuple[bool, int, int]] = {}
    pending: dict[str, list[str]] = {"": list(top)}
    for module in modules:
        for pattern, roles in RULES.items():
            match = re.fullmatch(pattern, module)
            if match and module not in pending:
                pending[module] = roles.split()
                found = match.groupdict()
                if "block" in found:
                    blocks[module] = (module.startswith("visual"), int(found.get("stage") or 0), int(found["block"]))
    places: list[Place] = []
    for module in modules:
        block = None
        if module in blocks:
            tower = {each for each in blocks.values() if each[0] == blocks[module][0]}
            block = sorted(tower).index(blocks[module])
        places.append((pending[module].pop(0), block))
    assert not any(pending.values()), "a module has fewer operators than the rules say"
    return places


def places(operators: list[Operator]) -> list[Place]:
    return [(operator.role, operator.block) for operator in operators]


def scrambled(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with meaningless names, without metadata, and with a Clip in front of everything that is multiplied."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    numbers = random.Random(0).sample(range(10**6), 10**4)
    names: dict[str, str] = {"": ""}

    def renamed(name: str) -> str:
        return names.setdefault(name, f"t{numbers[len(names)]}")

    weights = {weight.name for weight in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
        node.name = f"n{numbers[-1 - len(nodes)]}"
        clipped = [index for index in QUANTISED.get(node.op_type, ()) if node.input[index] not in weights]
        node.input[:] = [renamed(name) for name in node.input]
        node.output[:] = [renamed(name) for name in node.output]
        for index in clipped:
            bounded = f"{node.input[index]}_{node.name}_{index}"
            nodes.append(helper.make_node("Clip", [node.input[index], "low", "high"], [bounded], f"c{bounded}"))
            node.input[index] = bounded
        nodes.append(node)
    graph.ClearField("value_info")
    for value in [*graph.initializer, *graph.input, *graph.output]:
        value.name = renamed(value.name)
    for name, bound in (("low", -9.0), ("high", 9.0)):
        graph.initializer.append(numpy_helper.from_array(np.array(bound, np.float32), name))
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    graph.ClearField("node")
    graph.node.extend(copies)
    onnx.checker.check_model(result)
    return result


def one_operator(op_type: str, shapes: list[list[int]], weight: list[int], **attributes: Any) -> Operator:
    """A graph of one operator that takes ``x`` of the first shape and gives the second."""
    node = helper.make_node(op_type, ["x", "w"], ["y"], "only", **attributes)
    given, result = (helper.make_tensor_value_info(name, 1, shape) for name, shape in zip("xy", shapes, strict=True))
    initializer = numpy_helper.from_array(np.zeros(weight, np.float32), "w")
    graph = helper.make_graph([node], "one", [given], [result], [initializer])
    (operator,) = find_operators(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)]))
    return operator


@pytest.mark.torch
@pytest.mark.parametrize(("kind", "tower"), TOWERS)
def test_roles_are_those_of_the_modules(lowered: Lowered, kind: str, tower: str) -> None:
    model = lowered(kind, tower)
    custom = kind in ("siglip", "hf-text")
    operators = find_operators(model)
    assert places(operators) == reference(model, [] if custom or tower == "image" else ["projection"])
    assert [operator.node for operator in operators] == [n.name for n in model.graph.node if n.op_type in QUANTISED]
    assert "other" not in {operator.role for operator in operators}


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["siglip", "vit"])
def test_a_joint_graph_numbers_each_tower_and_its_logits_are_other(lowered: Lowered, kind: str) -> None:
    model = lowered(kind, "joint")
    operators = find_operators(model)
    assert places(operators) == reference(model, ["other"] if kind == "siglip" else ["projection", "other"])
    apart = [find_operators(lowered(kind, tower)) for tower in ("image", "text")]
    (logits,) = [operator for operator in operators if operator.role == "other"]
    assert logits.macs == (64 if kind == "siglip" else 24)
    sums = [sum(operator.macs for operator in tower) for tower in apart]
    assert macs_by_input(model) == dict(zip(("pixel_values", "input_ids"), sums, strict=True)), "without the logits"
    assert Counter((o.role, o.block, o.macs) for o in operators if o is not logits) == Counter(
        (o.role, o.block, o.macs) for tower in apart for o in tower
    )


@pytest.mark.torch
@pytest.mark.parametrize(("kind", "tower"), TOWERS)
def test_names_metadata_and_clips_play_no_part(lowered: Lowered, kind: str, tower: str) -> None:
    model = lowered(kind, tower)
    changed = scrambled(model)
    expected, found = find_operators(model), find_operators(changed)
    assert [(o.role, o.block, o.macs) for o in found] == [(o.role, o.block, o.macs) for o in expected]
    assert not {o.node for o in found} & {o.node for o in expected}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "tower"), [("vit", "image"), ("siglip", "image"), ("resnet", "image"), ("vit", "text")]
)
def test_a_static_batch_has_the_same_roles_and_the_same_work_for_each_row(
    lowered: Lowered, kind: str, tower: str
) -> None:
    dynamic, static = find_operators(lowered(kind, tower)), find_operators(lowered(kind, tower, 4))
    assert [(o.node, o.role, o.block, o.macs) for o in static] == [(o.node, o.role, o.block, o.macs) for o in dynamic]


@pytest.mark.torch
def test_a_graph_is_not_changed_and_operators_know_their_activations(lowered: Lowered) -> None:
    model = lowered("vit", "image")
    before = model.SerializeToString(deterministic=True)
    operators = find_operators(model)
    assert model.SerializeToString(deterministic=True) == before
    weights = {weight.name for weight in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    for operator in operators:
        assert operator.output == nodes[operator.node].output[0]
        assert list(operator.inputs) == [name for name in nodes[operator.node].input if name not in weights]
        assert len(operator.inputs) == (2 if operator.role in ("attention_scores", "attention_values") else 1)


@pytest.mark.torch
@pytest.mark.parametrize(
    ("kind", "tower", "tokens", "width", "mlp", "layers"),
    [("vit", "image", 1 + 2 * 2, 64, 256, 2), ("vit", "text", 12, 32, 128, 2), ("quick-gelu", "text", 16, 16, 64, 1)],
)
def test_work_of_a_transformer(
    lowered: Lowered, kind: str, tower: str, tokens: int, width: int, mlp: int, layers: int
) -> None:
    work = {
        "qkv": tokens * width * 3 * width,
        "attention_scores": tokens * tokens * width,
        "attention_values": tokens * tokens * width,
        "attention_output": tokens * width * width,
        "mlp_in": tokens * width * mlp,
        "mlp_out": tokens * mlp * width,
    }
    expected: list[tuple[str, int | None, int]] = [
        (role, block, macs) for block in range(layers) for role, macs in work.items()
    ]
    if tower == "image":
        expected.insert(0, ("patch_embedding", None, (2 * 2) * 64 * 3 * 16 * 16))
    expected.append(("projection", None, width * 24))
    assert [(o.role, o.block, o.macs) for o in find_operators(lowered(kind, tower))] == expected


@pytest.mark.torch
@pytest.mark.slow
def test_work_of_convolutions_and_of_attention_pooling(lowered: Lowered) -> None:
    resnet = find_operators(lowered("resnet", "image"))
    assert [operator.macs for operator in resnet[:7]] == [
        32 * 32 * 8 * 3 * 3 * 3,
        32 * 32 * 8 * 8 * 3 * 3,
        32 * 32 * 16 * 8 * 3 * 3,
        16 * 16 * 16 * 16,
        16 * 16 * 16 * 16 * 3 * 3,
        16 * 16 * 64 * 16,
        16 * 16 * 64 * 16,
    ]
    tokens, width = 1 + 2 * 2, 512
    assert [operator.macs for operator in resnet if operator.role == "pooling"] == [
        *[tokens * width * width] * 3,
        *[tokens * tokens * width] * 2,
        tokens * width * 24,
    ]
    depthwise = next(o for o in find_operators(lowered("convnext", "image")) if o.role == "convolution")
    assert depthwise.macs == 40 * 40 * 24 * 7 * 7


def test_work_of_single_operators() -> None:
    assert one_operator("Gemm", [[7, 5], [5, 3]], [7, 3], transA=1).macs == 5 * 7 * 3 // 7
    assert one_operator("Conv", [[2, 8, 6, 6], [2, 12, 4, 4]], [12, 2, 3, 3], group=4).macs == 4 * 4 * 12 * 2 * 9
    strided = {"strides": [2, 2]}
    assert one_operator("ConvTranspose", [[1, 8, 5, 5], [1, 6, 10, 10]], [8, 6, 2, 2], **strided).macs == 25 * 8 * 6 * 4


def test_without_blocks_a_convolution_embeds_and_a_linear_layer_projects() -> None:
    assert one_operator("MatMul", [[1, 5], [1, 3]], [5, 3]).role == "projection"
    assert one_operator("Conv", [[1, 3, 8, 8], [1, 5, 2, 2]], [5, 3, 4, 4], strides=[4, 4]).role == "patch_embedding"


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (helper.make_node("Compress", ["x", "which"], ["z"], axis=0), "the shape of tensor 'z' cannot be inferred"),
        (helper.make_node("Thing", ["x"], ["z"], "thing", domain="elsewhere"), "node 'thing': unknown operator Thing"),
    ],
)
def test_an_unknown_shape_is_an_error(first: onnx.NodeProto, message: str) -> None:
    node = helper.make_node("MatMul", ["z", "w"], ["y"], "only")
    given = [helper.make_tensor_value_info("x", 1, [1, 5]), helper.make_tensor_value_info("which", 9, [1])]
    weight = numpy_helper.from_array(np.zeros((5, 5), np.float32), "w")
    graph = helper.make_graph([first, node], "one", given, [helper.make_empty_tensor_value_info("y")], [weight])
    imports = [helper.make_opsetid("", 11), helper.make_opsetid("elsewhere", 1)]
    with pytest.raises(CompileError, match=message):
        find_operators(helper.make_model(graph, opset_imports=imports))


@pytest.mark.torch
def test_columns_of_zeros_join_no_towers_and_end_none(lowered: Lowered) -> None:
    """Lowering takes them from any early tensor; here one joins the picture's first tensor to the very last one."""
    model = onnx.ModelProto()
    model.CopyFrom(lowered("vit", "image"))
    graph = model.graph
    pixels, result = graph.node[0].output[0], graph.output[0].name
    ends = {"starts": [0, 0, 0], "ends": [1, 1, 1], "axes": [1, 2, 3], "flat": [-1, 1]}
    for name, values in ends.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "zero"))
    for inputs, op_type, output in (
        ([pixels, "starts", "ends", "axes"], "Slice", "first"),
        (["first", "zero"], "Mul", "zeros"),
        (["zeros", "flat"], "Reshape", "column"),
        ([result, "column"], "Add", "result"),
    ):
        graph.node.append(helper.make_node(op_type, inputs, [output], output))
    graph.output[0].name = "result"
    assert places(find_operators(model)) == places(find_operators(lowered("vit", "image")))


def operators_of(*given: tuple[str, int | None]) -> list[Operator]:
    return [
        Operator(node=f"node{number}", role=role, block=block, macs=1, inputs=("x",), output="y")  # type: ignore[arg-type]
        for number, (role, block) in enumerate(given)
    ]


def test_parse_selection() -> None:
    assert parse_selection("mlp_out") == Selection(role="mlp_out", blocks=None)
    assert parse_selection("mlp-out:0-2,11") == Selection(role="mlp_out", blocks=frozenset({0, 1, 2, 11}))
    assert parse_selection(" Attention-Scores : 3 , 1-1 ") == Selection(
        role="attention_scores", blocks=frozenset({1, 3})
    )
    for role in ROLES:
        assert parse_selection(role).role == role


@pytest.mark.parametrize("text", ["qkv", "mlp_out:0-2,11", "qkv:0", "convolution:1,3,5-6"])
def test_a_selection_prints_as_it_is_written(text: str) -> None:
    assert str(parse_selection(text)) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "mlp_uot:0",
            r"operators are 'mlp_uot:0'; unknown role 'mlp_uot', expected one of .*; expected ROLE or .*Did you mean 'mlp_out'",
        ),
        (
            "xyzzy",
            r"unknown role 'xyzzy', expected one of patch_embedding, qkv, .*, other; expected ROLE or ROLE:BLOCKS",
        ),
        ("", r"unknown role ''"),
        ("qkv:", r"operators are 'qkv:'; expected ROLE or ROLE:BLOCKS, such as mlp_out or mlp_out:0-2,11"),
        ("qkv:1,,2", r"operators are 'qkv:1,,2'; expected ROLE or ROLE:BLOCKS"),
        ("qkv:-1", r"operators are 'qkv:-1'; expected"),
        ("qkv:all", r"operators are 'qkv:all'; expected"),
        ("qkv:0-99999", r"operators are 'qkv:0-99999'; expected"),
        ("qkv:3-1", r"operators are 'qkv:3-1'; the blocks 3-1 run backwards; expected"),
    ],
)
def test_a_wrong_selection_says_what_was_expected(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words) as caught:
        parse_selection(text)
    assert "\n" not in str(caught.value)


def test_select_operators_keeps_the_order_of_the_graph_and_names_each_node_once() -> None:
    operators = operators_of(("qkv", 0), ("mlp_out", 0), ("qkv", 1), ("mlp_out", 1), ("projection", None))
    given = [parse_selection(text) for text in ("projection", "mlp_out:1", "qkv", "mlp_out:0-1")]
    assert select_operators(operators, given) == ["node0", "node1", "node2", "node3", "node4"]
    assert select_operators(operators, given[1:2]) == ["node3"]
    assert select_operators(operators, []) == []
    assert select_operators(operators, [parse_selection("projection:0")]) == []


def test_a_selection_that_names_nothing_is_refused_with_what_there_is() -> None:
    image = operators_of(("qkv", 0), ("qkv", 1), ("qkv", 3), ("convolution", None), ("convolution", 0))
    text = operators_of(("qkv", 5), ("projection", None))
    check_selections(
        [*image, *text], [parse_selection("qkv:5"), parse_selection("convolution"), parse_selection("qkv:0-9")]
    )
    has = r"it has qkv:0-1,3,5, convolution:0 \(and outside the blocks\), projection$"
    with pytest.raises(OptionError, match=r"operators are 'mlp_out', but this model has none; " + has):
        check_selections([*image, *text], [parse_selection("qkv"), parse_selection("mlp_out")])
    with pytest.raises(OptionError, match=r"operators are 'projection:0', but this model has none"):
        check_selections([*image, *text], [parse_selection("projection:0")])
    with pytest.raises(OptionError, match=r"it has none that can be quantised"):
        check_selections([], [parse_selection("qkv")])


def test_operators_and_selections_are_values() -> None:
    (operator,) = operators_of(("qkv", 0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        operator.role = "other"  # type: ignore[misc]
    assert len({parse_selection("qkv:0"), parse_selection("qkv:0-0")}) == 1
