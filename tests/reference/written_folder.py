"""Both models fed with the same tensors, stage by stage; and mmdet3d's built from a folder that we wrote."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from altermoma.models.fusion import FusionModel
from altermoma.ops.sparse_tables import SparseTableBuilder, in_rows

Pair = tuple[str, Tensor, Tensor]


def build_mmdet3d(folder: Path) -> Any:
    """The detector of `folder/config.py` with `folder/model.pth`, loaded strictly by mmengine."""
    from mmdet3d.registry import MODELS
    from mmengine.config import Config
    from mmengine.runner import load_checkpoint

    sys.path.insert(0, str(folder))
    try:
        config = Config.fromfile(folder / "config.py")
        model = MODELS.build(config.model).eval()
    finally:
        sys.path.remove(str(folder))
    load_checkpoint(model, str(folder / "model.pth"), map_location="cpu", strict=True)
    return model


@torch.no_grad()
def stages(ours: FusionModel, theirs: Any) -> Iterator[Pair]:
    """(stage, our output, mmdet3d's) on random inputs."""
    geometry = ours.config.geometry
    yield from _camera(ours, theirs)
    pooled = torch.randn(1, theirs.view_transform.C, *geometry.pool_shape)
    camera_bev = ours.view_transform.downsample(pooled)
    yield "view transform, downsampling", camera_bev, theirs.view_transform.downsample(pooled)
    lidar_bev, reference = _lidar(ours, theirs)
    yield "LiDAR encoder", lidar_bev, reference
    fused = ours.fusion_layer(camera_bev, lidar_bev)
    yield "fuser", fused, theirs.fusion_layer([camera_bev, lidar_bev])
    levels = ours.pts_backbone(fused)
    for index, (own, other) in enumerate(zip(levels, theirs.pts_backbone(fused), strict=True)):
        yield f"BEV backbone, level {index}", own, other
    bev = ours.pts_neck(levels)
    yield "BEV neck", bev, theirs.pts_neck(levels)[0]
    found, wanted = ours.bbox_head(bev), theirs.bbox_head([bev], None)[0][0]
    for name in ("dense_heatmap", "center", "height", "dim", "rot", "vel", "heatmap"):
        yield f"head, {name}", getattr(found, name), wanted[name]


def _camera(ours: FusionModel, theirs: Any) -> Iterator[Pair]:
    image = ours.config.geometry.image
    images = torch.randn(2, 3, image.height, image.width)
    depth = torch.rand(2, 1, image.height, image.width) * 40
    maps = ours.img_backbone(images)
    for level, (own, other) in enumerate(zip(maps, theirs.img_backbone(images), strict=True)):
        yield f"camera backbone, level {level}", own, other
    features = ours.img_neck(maps)
    yield "camera neck", features, theirs.img_neck(maps)[0]
    weights, pixels = ours.view_transform.lift(features, depth)
    lifted = weights[..., None] * pixels[..., None, :]
    # mmdet3d: [batch, view, depth, row, column, channel]
    product = theirs.view_transform.get_cam_feats(features[None], depth[None])[0]
    yield "view transform, lift", lifted.permute(0, 3, 1, 2, 4), product


def _lidar(ours: FusionModel, theirs: Any) -> tuple[Tensor, Tensor]:
    geometry = ours.config.geometry
    x, y, z = geometry.sparse_shape
    cells = np.unique(np.random.default_rng(0).integers(0, (x, y, z - 1), (3000, 3)) // (4, 4, 1), axis=0)
    keys = (cells[:, 0].astype(np.int64) * y + cells[:, 1]) * z + cells[:, 2]
    places, arrays = SparseTableBuilder(geometry).build(keys)
    tables = {name: torch.from_numpy(table) for name, table in arrays.items()}
    voxels = torch.randn(len(cells), geometry.point_features)
    batch_xyz = torch.from_numpy(np.pad(cells, ((0, 0), (1, 0)))).int()
    rows = torch.from_numpy(in_rows(voxels.numpy(), places))
    return ours.pts_middle_encoder(rows, tables, 1), theirs.pts_middle_encoder(voxels, batch_xyz, 1)


def train_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a loss and its gradient need beyond the stand-ins: pooling's gradient, box overlaps, spconv without CUDA."""

    def pool_backward(gradient: Tensor, cells: Tensor, *_: Any) -> Tensor:
        x, y, z, batch = cells.long().unbind(1)
        return gradient[batch, z, x, y].contiguous()

    def overlaps(first: Tensor, second: Tensor, ious: Tensor, **_: Any) -> None:
        # Of no matter here: any finite cost gives an assignment.
        ious.zero_()

    pool = sys.modules["projects.BEVFusion.bevfusion.ops.bev_pool.bev_pool_ext"]
    monkeypatch.setattr(pool, "bev_pool_backward", pool_backward)
    monkeypatch.setattr(sys.modules["mmcv._ext"], "box_iou_rotated", overlaps, raising=False)
    if not torch.cuda.is_available():
        monkeypatch.setattr("spconv.pytorch.ops.get_current_stream", lambda: 0)


def random_sample(theirs: Any, image_hw: tuple[int, int]) -> tuple[dict[str, Any], list[Any]]:
    """One frame of six cameras looking around, a random cloud and three boxes, as mmdet3d's `loss` takes it."""
    from mmdet3d.structures import Det3DDataSample, LiDARInstance3DBoxes
    from mmengine.structures import InstanceData

    height, width = image_hw
    cam2img = np.diag([width / 2.0, width / 2.0, 1.0, 1.0]).astype(np.float32)
    cam2img[:2, 2] = width / 2, height / 2
    lidar2cam = []
    for view in range(6):
        sine, cosine = np.sin(view * np.pi / 3), np.cos(view * np.pi / 3)
        lidar2cam.append(np.array([[sine, -cosine, 0, 0], [0, 0, -1, 0], [cosine, sine, 0, 0], [0, 0, 0, 1]]))
    sample = Det3DDataSample()
    sample.set_metainfo(
        {
            "lidar2img": np.stack([cam2img @ pose for pose in lidar2cam]),
            "cam2img": np.stack([cam2img] * 6),
            "cam2lidar": np.stack([np.linalg.inv(pose) for pose in lidar2cam]),
            "img_aug_matrix": np.stack([np.eye(4)] * 6),
            "lidar_aug_matrix": np.eye(4),
            "box_type_3d": LiDARInstance3DBoxes,
        }
    )
    boxes = torch.tensor(
        [[8.0, 3, -1, 4, 2, 1.5, 0.3, 1, 0], [-6, 5, -1, 1, 1, 1.8, 0, 0, 1], [2, -9, -1, 7, 3, 3, 1, 0, 0]]
    )
    truth = InstanceData()
    truth.bboxes_3d, truth.labels_3d = LiDARInstance3DBoxes(boxes, box_dim=9), torch.tensor([0, 8, 1])
    sample.gt_instances_3d = truth
    points = torch.rand(4000, 5) * torch.tensor([40.0, 40.0, 4.0, 255.0, 0.5]) - torch.tensor(
        [20.0, 20.0, 3.0, 0.0, 0.0]
    )
    return {"imgs": torch.randn(1, 6, 3, height, width), "points": [points]}, [sample]
