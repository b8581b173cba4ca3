"""ONNX graphs: traced from functions, made to take any number of points, and given what JAX has no shapes for."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from sam_jax.convert.errors import ConversionError
from sam_jax.convert.onnx_functions import GraphFunction, portable_forms

OPSET = 18  # onnxruntime 1.14 and newer
# Two numbers of points that no width of a model is mistaken for.
POINTS = (7, 11)
_POINTS, _SIZE = "num_points", "orig_im_size"

Graph = Any  # onnx.GraphProto
Model = Any  # onnx.ModelProto


def trace(function: GraphFunction, name: str) -> Model:
    """A function as an ONNX model; shapes are those of its inputs."""
    from jax2onnx import to_onnx

    logging.getLogger("onnx_ir").setLevel(logging.ERROR)  # it warns of sizes whose type nobody asks for

    def portable(*arrays: Any) -> Any:
        with portable_forms():  # inside: jax2onnx has forms of its own, which these go before
            return function.call(*arrays)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that float64, which it always asks for, becomes float32
        model: Model = to_onnx(
            portable,
            list(function.inputs.values()),
            model_name=name,
            opset=OPSET,
            input_names=list(function.inputs),
            output_names=list(function.outputs),
        )
    del model.graph.value_info[:]
    return model


def with_any_points(function_of: Callable[[int], GraphFunction], name: str) -> Model:
    """The model of a function for every number of points.

    It is traced for two numbers. Whatever differs between the graphs are sizes, and sizes are linear in the number of
    points: these constants become what is computed from the number that is given. jax2onnx's own symbolic sizes get
    lost where a sum of them is reshaped.

    Raises:
      ConversionError: something else differs.
    """
    from onnx import TensorProto, helper, numpy_helper

    few, many = (trace(function_of(points), name) for points in POINTS)
    graph = few.graph
    _check_same_nodes(graph, many.graph)
    others = {constant.name: numpy_helper.to_array(constant) for constant in many.graph.initializer}
    nodes, constants = _number_of_points()
    for constant in list(graph.initializer):
        small, large = numpy_helper.to_array(constant), others[constant.name]
        if small.dtype == large.dtype and small.shape == large.shape and small.tobytes() == large.tobytes():
            continue  # by their bytes: a NaN, which fills what a gather does not find, equals no NaN
        if small.dtype != np.int64 or small.shape != large.shape:
            raise ConversionError(
                f"{name}: the constant {constant.name} depends on the number of points and is no size"
            )
        slope, rest = np.divmod(large - small, POINTS[1] - POINTS[0])
        if rest.any():
            raise ConversionError(f"{name}: the size {constant.name} is not linear in the number of points")
        graph.initializer.remove(constant)
        parts = {"slope": slope, "base": small - slope * POINTS[0]}
        constants += [numpy_helper.from_array(array, f"{constant.name}_{part}") for part, array in parts.items()]
        nodes += [
            helper.make_node("Mul", [_POINTS, f"{constant.name}_slope"], [f"{constant.name}_times"]),
            helper.make_node("Add", [f"{constant.name}_times", f"{constant.name}_base"], [constant.name]),
        ]
    graph.initializer.extend(constants)
    _put_first(graph, nodes)
    for number, one in enumerate(graph.input):
        if one.name in ("point_coords", "point_labels"):
            shape: list[int | str | None] = [1, _POINTS]
            shape += [2] * (one.name == "point_coords")
            graph.input[number].CopyFrom(helper.make_tensor_value_info(one.name, TensorProto.FLOAT, shape))
    return few


def _number_of_points() -> tuple[list[Any], list[Any]]:
    """Nodes and constants that give how many points there are."""
    from onnx import helper, numpy_helper

    nodes = [
        helper.make_node("Shape", ["point_labels"], ["shape_of_labels"]),
        helper.make_node("Gather", ["shape_of_labels", "axis_of_points"], [_POINTS]),
    ]
    return nodes, [numpy_helper.from_array(np.array(1, np.int64), "axis_of_points")]


def _check_same_nodes(few: Graph, many: Graph) -> None:
    same = len(few.node) == len(many.node) and all(a == b for a, b in zip(few.node, many.node, strict=True))
    if not same or {x.name for x in few.initializer} != {x.name for x in many.initializer}:
        raise ConversionError("the decoder's graph is another for another number of points; it cannot be exported")


def take_orig_im_size(model: Model, side: int) -> None:
    """Puts the input `orig_im_size` (2,) float32, (H, W) of the image, in the place of `input_size`.

    `side` of the input frame, pixels. Computed as `ops.transforms.resized_size` does, in float64.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    # (side / max) * size + 0.5, rounded down, at least 1
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Cast", [_SIZE], "size_64", {"to": TensorProto.DOUBLE}),
        ("ReduceMax", ["size_64"], "longest", {"keepdims": 1}),
        ("Div", ["frame_side", "longest"], "frame_scale", {}),
        ("Mul", ["size_64", "frame_scale"], "scaled", {}),
        ("Add", ["scaled", "one_half"], "scaled_and_half", {}),
        ("Floor", ["scaled_and_half"], "rounded", {}),
        ("Max", ["rounded", "one_64"], "at_least_one", {}),
        ("Cast", ["at_least_one"], "input_size_64", {"to": TensorProto.INT64}),
        ("Cast", ["input_size_64"], "input_size", {"to": TensorProto.INT32}),
    ]
    for name, value in (("frame_side", side), ("one_half", 0.5), ("one_64", 1.0)):
        graph.initializer.append(numpy_helper.from_array(np.array([value], np.float64), name))
    _put_first(graph, [helper.make_node(kind, ins, [out], **extra) for kind, ins, out, extra in steps])
    for one in list(graph.input):
        if one.name == "input_size":
            graph.input.remove(one)
    graph.input.append(helper.make_tensor_value_info(_SIZE, TensorProto.FLOAT, [2]))


def enlarge_masks(model: Model, masks: int, side: int) -> None:
    """Puts the output `masks` (1, M, H, W) before all others, and in the place of `refined_masks` where these are.

    Enlarged to the input frame, cut to the image in it, and resized to the image (`ops.masks.postprocess_masks`).
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    source = "refined_masks" if any(one.name == "refined_masks" for one in graph.output) else "low_res_masks"
    constants = {
        "frame_shape": [1, masks, side, side],
        "masks_and_batch": [1, masks],
        "corner": [0, 0],
        "image_axes": [2, 3],
    }
    for name, values in constants.items():
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
    linear = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    steps: list[tuple[str, list[str], str, dict[str, Any]]] = [
        ("Resize", [source, "", "", "frame_shape"], "in_frame", linear),
        ("Slice", ["in_frame", "corner", "input_size_64", "image_axes"], "in_image", {}),
        ("Cast", [_SIZE], "image_size_64", {"to": TensorProto.INT64}),
        ("Concat", ["masks_and_batch", "image_size_64"], "masks_shape", {"axis": 0}),
        ("Resize", ["in_image", "", "", "masks_shape"], "masks", linear),
    ]
    graph.node.extend(helper.make_node(kind, ins, [out], **extra) for kind, ins, out, extra in steps)
    kept = [one for one in graph.output if one.name != "refined_masks"]
    del graph.output[:]
    shape: list[int | str | None] = [1, masks, "image_height", "image_width"]
    graph.output.extend([helper.make_tensor_value_info("masks", TensorProto.FLOAT, shape), *kept])


def sizes_of(model: Model) -> list[str]:
    """Names of the nodes that make sizes, and of those that neither logits nor embeddings are made of.

    They stay float32 where others do not: an image's size and sums over its pixels leave float16's range.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}

    def makers(waiting: list[str]) -> set[str]:
        found: set[str] = set()
        while waiting:
            node = made_by.get(waiting.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                waiting += node.input
        return found

    needed = makers([one.name for one in model.graph.output if one.name != "masks"]) - makers(["input_size"])
    return [node.name for node in model.graph.node if node.name not in needed]


def tidy(model: Model, facts: dict[str, str]) -> None:
    """Drops constants that no node uses, names nodes, adds `facts` to the metadata, and has ONNX check the whole."""
    import onnx

    graph = model.graph
    used = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    used |= {name for node in graph.node for part in node.attribute for inner in part.g.node for name in inner.input}
    for constant in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(constant)
    for number, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.helper.set_model_props(model, facts)
    if model.ByteSize() < 2**31:
        onnx.checker.check_model(model)


def _put_first(graph: Graph, nodes: list[Any]) -> None:
    later = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *later])
