"""A five-stage detector small enough to be written twice: as ONNX graphs by hand, and in numpy as their oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from describe import describe_graph
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from altermoma.deploy.bundle import Bundle, BundleContent, write_bundle
from altermoma.deploy.manifest import AxisRange
from altermoma.deploy.reference import Reference
from altermoma.frames import CLASS_NAMES, Calibration, Frame
from altermoma.geometry import Geometry, ImageGeometry
from altermoma.ops.decode import decode
from altermoma.ops.prepare import FramePreparer
from altermoma.ops.sparse_tables import SEGMENTS, segment_names

GEOMETRY = Geometry(
    image=ImageGeometry(cameras=2, height=32, width=64, feature_stride=8),
    point_range=(-4.0, -4.0, -3.0, 4.0, 4.0, 3.0),
    voxel_size=(0.5, 0.5, 0.3),
    max_voxels=400,
    depth_bins=(1.0, 5.0, 1.0),
    pool_cell=2.0,
    post_center_range=(-40.0, -40.0, -10.0, 40.0, 40.0, 10.0),
)
CHANNELS = 3
CELLS = 16
COLUMNS = 16
AXES = {name: AxisRange(min=1, opt=200, max=4000) for name in ("N0", "N3", "R1", "R2", "R3")}
AXES |= {f"N{level}_{s}": AxisRange(min=0, opt=50, max=4000) for level in range(3) for s in SEGMENTS}
FAN = GEOMETRY.fan_in
BETWEEN = {"depth_weights", "pixel_features", "camera_bev", "lidar_bev", "bev"}

SHAPES: dict[str, tuple[int | str, ...]] = {
    "images": (2, 3, 32, 64),
    "depth": (2, 1, 32, 64),
    "voxels": ("N0", 5),
    **{
        f"subm_table_{level}_{s}": (f"N{level}_{s}", 9 * (b - a))
        for level in range(3)
        for s, (a, b) in SEGMENTS.items()
    },
    **{f"down_table_{level}_{s}": (f"N{level + 1}_{s}", 27) for level in range(2) for s in SEGMENTS},
    "out_table": ("N3", 3),
    "bev_table": (CELLS, 2),
    "pool_depth": (COLUMNS, "R1", 4),
    "pool_sum_1": ("R2", FAN[0]),
    "pool_sum_2": (CELLS, FAN[1]),
    "depth_weights": (2, 4, 8, 4),
    "pixel_features": (2, 4, 8, CHANNELS),
    "camera_bev": (1, CHANNELS, 4, 4),
    "lidar_bev": (1, 5, 4, 4),
    "bev": (1, 8, 4, 4),
    "query_scores": (1, 10, CELLS),
    "heatmap": (1, 10, CELLS),
    "query_labels": (1, CELLS),
    "center": (1, 2, CELLS),
    "height": (1, 1, CELLS),
    "dim": (1, 3, CELLS),
    "rot": (1, 2, CELLS),
    "vel": (1, 2, CELLS),
}
_SUBM = tuple(name for level in range(3) for name in segment_names(f"subm_table_{level}"))
_DOWN = tuple(name for level in range(2) for name in segment_names(f"down_table_{level}"))
INPUTS = {
    "camera": ("images", "depth"),
    "view": ("depth_weights", "pixel_features", "pool_depth", "pool_sum_1", "pool_sum_2"),
    "lidar": ("voxels", *_SUBM, *_DOWN, "out_table", "bev_table"),
    "fusion": ("camera_bev", "lidar_bev"),
    "head": ("bev",),
}  # fmt: skip
BRANCHES = {"center": (0, 2), "height": (2, 3), "dim": (3, 6), "rot": (4, 6), "vel": (6, 8)}
OUTPUTS = {
    "camera": ("depth_weights", "pixel_features"),
    "view": ("camera_bev",),
    "lidar": ("lidar_bev",),
    "fusion": ("bev",),
    "head": ("query_scores", "heatmap", "query_labels", *BRANCHES),
}

_RNG = np.random.default_rng(3)
W_DEPTH = _RNG.normal(size=(4, 1, 1, 1)).astype(np.float32)
W_FUSE = _RNG.normal(size=(8, 8, 1, 1)).astype(np.float32) * 0.3
W_HEAT = _RNG.normal(size=(10, 8)).astype(np.float32) * 0.2


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], name=f"{op}_{output}", **attributes)


def gather_sum(rows: str, table: str, output: str, channels: int) -> list[onnx.NodeProto]:
    """output[i] = sum of rows[table[i]], a row beyond the last being zero."""
    zero = numpy_helper.from_array(np.zeros((1, channels), np.float32))
    return [
        helper.make_node("Constant", [], [f"{output}_zero"], value=zero),
        node("Concat", f"{rows} {output}_zero", f"{output}_rows", axis=0),
        node("Gather", f"{output}_rows {table}", f"{output}_taken", axis=0),
        node("ReduceSum", f"{output}_taken one", output, keepdims=0),
    ]


def segment_sums(rows: str, table: str, output: str, channels: int) -> list[onnx.NodeProto]:
    """gather_sum over the segments of a table."""
    names = segment_names(table)
    sums = [item for name in names for item in gather_sum(rows, name, f"{output}_{name}", channels)]
    return [*sums, node("Concat", " ".join(f"{output}_{name}" for name in names), output, axis=0)]


def stage_nodes(stage: str) -> list[onnx.NodeProto]:
    if stage == "camera":
        return [
            node("AveragePool", "images", "small", kernel_shape=[8, 8], strides=[8, 8]),
            node("AveragePool", "depth", "near", kernel_shape=[8, 8], strides=[8, 8]),
            node("Conv", "near w_depth", "bins"),
            node("Transpose", "bins", "depth_weights", perm=[0, 2, 3, 1]),
            node("Transpose", "small", "pixel_features", perm=[0, 2, 3, 1]),
        ]
    if stage == "view":
        return [
            node("Reshape", "depth_weights column", "weights"),
            node("Concat", "weights zero_weight", "weights_z", axis=0),
            node("Gather", "weights_z pool_depth", "w", axis=0),
            node("Squeeze", "w last", "runs"),
            node("Transpose", "pixel_features", "by_column", perm=[0, 2, 1, 3]),
            node("Reshape", "by_column column_shape", "columns"),
            node("MatMul", "runs columns", "products"),
            node("Reshape", "products channels", "rows"),
            *gather_sum("rows", "pool_sum_1", "sums", CHANNELS),
            node("Concat", "rows sums", "both", axis=0),
            *gather_sum("both", "pool_sum_2", "cells", CHANNELS),
            node("Transpose", "cells", "flat", perm=[1, 0]),
            node("Reshape", "flat bev_shape", "camera_bev"),
        ]
    if stage == "lidar":
        return [
            *segment_sums("voxels", "down_table_0", "f1", 5),
            *segment_sums("f1", "down_table_1", "f2", 5),
            *gather_sum("f2", "out_table", "f3", 5),
            *gather_sum("f3", "bev_table", "cells", 5),
            node("Transpose", "cells", "flat", perm=[1, 0]),
            node("Reshape", "flat bev_shape", "lidar_bev"),
        ]
    if stage == "fusion":
        return [
            node("Concat", "camera_bev lidar_bev", "both", axis=1),
            node("Conv", "both w_fuse", "mixed"),
            node("Tanh", "mixed", "bev"),
        ]
    flat = [
        node("Reshape", "bev flat_shape", "cells"),
        node("MatMul", "w_heat cells", "heatmap"),
        node("Sigmoid", "heatmap", "query_scores"),
        node("ArgMax", "heatmap", "labels", axis=1, keepdims=0),
        node("Cast", "labels", "query_labels", to=TensorProto.INT32),
    ]
    return flat + [node("Slice", f"cells {name}_low {name}_high one", name) for name in BRANCHES]


def constants() -> dict[str, NDArray[np.generic]]:
    shapes = {
        "one": [1],
        "column": [-1, 1],
        "channels": [-1, CHANNELS],
        "last": [3],
        "column_shape": [COLUMNS, 4, CHANNELS],
        "bev_shape": [1, -1, 4, 4],
        "flat_shape": [1, 8, CELLS],
    }
    integers = {name: np.asarray(value, np.int64) for name, value in shapes.items()}
    for name, (low, high) in BRANCHES.items():
        integers |= {f"{name}_low": np.asarray([low], np.int64), f"{name}_high": np.asarray([high], np.int64)}
    zeros = {"zero_weight": np.zeros((1, 1), np.float32)}
    return {**integers, **zeros, "w_depth": W_DEPTH, "w_fuse": W_FUSE, "w_heat": W_HEAT}


def dtype_of(name: str, precision: str) -> int:
    if "table" in name or name.startswith("pool_") or name == "query_labels":
        return int(TensorProto.INT32)
    return int(TensorProto.FLOAT16 if precision == "fp16" and name in BETWEEN else TensorProto.FLOAT)


def stage_graph(stage: str, precision: str = "fp32") -> bytes:
    """One stage; in fp16 the tensors between stages are float16 and everything inside stays float32."""
    nodes = stage_nodes(stage)
    before, after = [], []
    for name in (*INPUTS[stage], *OUTPUTS[stage]):
        if dtype_of(name, precision) != TensorProto.FLOAT16:
            continue
        for item in nodes:
            for names in (item.input, item.output):
                names[:] = [f"{name}_32" if n == name else n for n in names]
        if name in INPUTS[stage]:
            before.append(node("Cast", name, f"{name}_32", to=TensorProto.FLOAT))
        else:
            after.append(node("Cast", f"{name}_32", name, to=TensorProto.FLOAT16))
    used = {n for item in nodes for n in item.input}
    held = [numpy_helper.from_array(array, name) for name, array in constants().items() if name in used]
    infos = [
        [helper.make_tensor_value_info(n, dtype_of(n, precision), list(SHAPES[n])) for n in names]
        for names in (INPUTS[stage], OUTPUTS[stage])
    ]
    graph = helper.make_graph([*before, *nodes, *after], stage, *infos, initializer=held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def oracle(host: dict[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
    """Every stage output in float64 numpy."""

    def pooled(image: NDArray[np.generic]) -> NDArray[np.float64]:
        v, c, h, w = image.shape
        return image.astype(np.float64).reshape(v, c, h // 8, 8, w // 8, 8).mean((3, 5)).transpose(0, 2, 3, 1)

    def summed(rows: NDArray[np.float64], table: NDArray[np.generic]) -> NDArray[np.float64]:
        padded = np.concatenate([rows, np.zeros((1, rows.shape[1]))])
        return padded[table].sum(1)

    t: dict[str, NDArray[np.float64]] = {"pixel_features": pooled(host["images"])}
    t["depth_weights"] = pooled(host["depth"]) * W_DEPTH[:, 0, 0, 0]
    weights = np.append(t["depth_weights"].ravel(), 0.0)
    columns = t["pixel_features"].transpose(0, 2, 1, 3).reshape(COLUMNS, 4, CHANNELS)
    rows = np.einsum("krh,khc->krc", weights[host["pool_depth"]], columns).reshape(-1, CHANNELS)
    both = np.concatenate([rows, summed(rows, host["pool_sum_1"])])
    t["camera_bev"] = summed(both, host["pool_sum_2"]).T.reshape(1, CHANNELS, 4, 4)
    features = host["voxels"].astype(np.float64)
    for names in (segment_names("down_table_0"), segment_names("down_table_1"), ("out_table",), ("bev_table",)):
        features = summed(features, np.concatenate([host[name] for name in names]))
    t["lidar_bev"] = features.T.reshape(1, 5, 4, 4)
    both = np.concatenate([t["camera_bev"], t["lidar_bev"]], 1)
    t["bev"] = np.tanh(np.einsum("oi,bixy->boxy", W_FUSE[:, :, 0, 0], both))
    cells = t["bev"].reshape(1, 8, CELLS)
    t["heatmap"] = W_HEAT @ cells
    t["query_scores"] = 1 / (1 + np.exp(-t["heatmap"]))
    t |= {name: cells[:, low:high] for name, (low, high) in BRANCHES.items()}
    labels = t["heatmap"].argmax(1).astype(np.int32)
    return {**{name: array.astype(np.float32) for name, array in t.items()}, "query_labels": labels}


def frame(seed: int = 0, points: int = 300) -> Frame:
    """Two cameras that look along +x and -x over a random cloud."""
    rng = np.random.default_rng(seed)
    cloud = rng.uniform((-4, -4, -3, 0, 0), (4, 4, 3, 255, 0.1), (points, 5)).astype(np.float32)
    cloud[:, 3] /= 100.0
    poses = np.tile(np.eye(4), (2, 1, 1))
    poses[0, :3, :3] = [[0, -1, 0], [0, 0, -1], [1, 0, 0]]
    poses[1, :3, :3] = [[0, 1, 0], [0, 0, -1], [-1, 0, 0]]
    intrinsics = np.tile(np.array([[80.0, 0, 80], [0, 80, 60], [0, 0, 1]]), (2, 1, 1))
    return Frame(
        token=f"frame{seed}",
        scene="toy",
        images_vhw3=rng.integers(0, 255, (2, 120, 160, 3), dtype=np.uint8),
        points_p5=cloud,
        calibration=Calibration(
            camera_names=("FRONT", "BACK"), intrinsics_v33=intrinsics, camera_from_lidar_v44=poses, image_hw=(120, 160)
        ),
        ego_from_lidar_44=np.eye(4),
        global_from_ego_44=np.eye(4),
    )


def reference(of: Frame) -> Reference:
    host = FramePreparer(GEOMETRY).prepare(of)
    tensors = oracle(host)
    return Reference(
        images_vhw3=of.images_vhw3,
        points_p5=of.points_p5,
        calibration=of.calibration,
        host=dict(host),
        tensors=tensors,
        boxes=decode(tensors, GEOMETRY)[0],
    )


def content(precisions: tuple[str, ...] = ("fp32", "fp16")) -> BundleContent:
    return BundleContent(
        name="toy",
        recipe={"engine": {"precision": "fp16"}, "prune": {"scope": ("camera", "lidar")}},
        geometry=GEOMETRY,
        class_names=CLASS_NAMES,
        graphs={
            p: {s: describe_graph(stage_graph(s, p), name=s, axes=AXES, notes={"depth": ("seen", "m")}) for s in INPUTS}
            for p in precisions
        },
        reference=reference(frame()),
        tolerances={"fp32": 1e-4, "fp16": 5e-2},
        widths={"img_backbone.layer1": {"dense": 64, "kept": 32}},
        metrics={"mAP": 0.5},
        versions={"altermoma": "0"},
    )


def toy_bundle(folder: Path, precisions: tuple[str, ...] = ("fp32", "fp16")) -> Bundle:
    return write_bundle(folder, content(precisions))
