"""mmdet3d's BEVFusion and ours with the same random weights, run on the same real frame, compared stage by stage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from altermoma.deploy.matching import choice_drift
from altermoma.frames import Calibration
from altermoma.models.batch import collate
from altermoma.models.fusion import FusionModel
from altermoma.models.head import BRANCHES
from altermoma.models.presets import build
from altermoma.ops.decode import decode
from altermoma.ops.functional import pool_bev
from altermoma.ops.images import image_warp
from altermoma.ops.prepare import FramePreparer
from altermoma.ops.sparse_tables import SparseTableBuilder, in_rows

CONFIG = "projects/BEVFusion/configs/bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py"
RESNET101 = {"type": "mmdet.ResNet", "depth": 101, "out_indices": (1, 2, 3), "norm_eval": False}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Largest difference of one tensor, as a share of the reference's largest value. `note` says what else was seen."""

    stage: str
    error: float
    note: str = ""


def build_pair(preset: str, checkout: Path, seed: int = 0) -> tuple[Any, FusionModel]:
    """mmdet3d's detector of its shipped configuration (or with ResNet-101 in it) and our preset, weights alike."""
    from mmdet3d.registry import MODELS
    from mmengine.config import Config

    config = Config.fromfile(checkout / CONFIG).model
    config.img_backbone.init_cfg = None
    if "r101" in preset:
        config.img_backbone = RESNET101
        config.img_neck.in_channels = [512, 1024, 2048]
    torch.manual_seed(seed)
    theirs = MODELS.build(config).eval()
    for module in theirs.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high)
        elif isinstance(module, nn.LayerNorm | nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
    ours = build(preset).eval()
    state = theirs.state_dict()
    ours.load_state_dict({name: state[name] for name in ours.state_dict()})
    return theirs, ours


def metas(calibration: Calibration, ours: FusionModel) -> dict[str, Tensor]:
    """The calibration as mmdet3d's matrices, float32 [1, V, 4, 4]."""
    image = ours.config.geometry.image
    warp = image_warp(calibration.image_hw, image)
    intrinsics = np.tile(np.eye(4), (image.cameras, 1, 1))
    intrinsics[:, :3, :3] = calibration.intrinsics_v33
    resized = np.tile(np.diag([warp.scale, warp.scale, 1.0, 1.0]), (image.cameras, 1, 1))
    resized[:, :2, 3] = -warp.left, -warp.top
    arrays = {
        "lidar2image": intrinsics @ calibration.camera_from_lidar_v44,
        "cam_intrinsic": intrinsics,
        "camera2lidar": np.linalg.inv(calibration.camera_from_lidar_v44),
        "img_aug_matrix": resized,
    }
    found = {name: torch.from_numpy(array)[None].float() for name, array in arrays.items()}
    return {**found, "lidar_aug_matrix": torch.eye(4)[None]}


def in_range(points_p5: NDArray[np.float32], ours: FusionModel) -> NDArray[np.float32]:
    """What mmdet3d's PointsRangeFilter keeps."""
    low, high = np.array(ours.config.geometry.point_range, np.float32).reshape(2, 3)
    return points_p5[((points_p5[:, :3] > low) & (points_p5[:, :3] < high)).all(axis=1)]


class Comparison:
    """Both detectors on one frame. Ours gets the reference's input at every stage, and once only the frame."""

    def __init__(self, theirs: Any, ours: FusionModel, images: NDArray[np.uint8], calibration: Calibration) -> None:
        self.theirs, self.ours, self.images, self.calibration = theirs, ours, images, calibration

    @torch.no_grad()
    def rows(self, points_p5: NDArray[np.float32]) -> Iterator[Row]:
        points = in_range(points_p5, self.ours)
        geometry = self.ours.config.geometry
        inputs = FramePreparer(geometry).prepare_parts(self.images, points, self.calibration)
        batch = collate([inputs], geometry)
        features = self.theirs.img_backbone(batch["images"])
        for stride, own, other in zip((8, 16, 32), self.ours.img_backbone(batch["images"]), features, strict=True):
            yield Row(stage=f"camera backbone, stride {stride}", error=relative(own, other))
        neck = self.theirs.img_neck(features)[0]
        yield Row(stage="camera neck", error=relative(self.ours.img_neck(list(features)), neck))
        camera_bev = yield from self._view(neck, torch.from_numpy(points), batch)
        lidar_bev = yield from self._lidar(torch.from_numpy(points), inputs, batch)
        fused = self.theirs.fusion_layer([camera_bev, lidar_bev])
        yield Row(stage="fuser", error=relative(self.ours.fusion_layer(camera_bev, lidar_bev), fused))
        levels = self.theirs.pts_backbone(fused)
        for index, (own, other) in enumerate(zip(self.ours.pts_backbone(fused), levels, strict=True)):
            yield Row(stage=f"BEV backbone, level {index}", error=relative(own, other))
        bev = self.theirs.pts_neck(levels)[0]
        yield Row(stage="BEV neck", error=relative(self.ours.pts_neck(list(levels)), bev))
        self._spread(bev)
        cells: dict[str, Tensor] = {}
        hook = self.theirs.bbox_head.decoder[0].register_forward_pre_hook(
            lambda _, __, named: cells.update(positions=named["query_pos"]), with_kwargs=True
        )
        (other,) = self.theirs.bbox_head([bev], None)[0]
        hook.remove()
        rows, columns = bev.shape[2:]
        x, y = cells["positions"].long().unbind(dim=-1)
        chosen = (self.theirs.bbox_head.query_labels * rows + x) * columns + y
        whole = self.ours.fuse(self.ours.camera_branch(batch), self.ours.lidar_branch(batch))
        yield from self._head(bev, other, chosen, "head")
        yield from self._head(whole, other, chosen, "whole frame")

    def _spread(self, bev: Tensor) -> None:
        """Scales the last layers of both heads to outputs of up to 4: random ones saturate, so that proposals tie."""
        found = self.theirs.bbox_head([bev], None)[0][0]
        sizes = {name: float(value.abs().max()) / 4.0 for name, value in found.items()}
        for head in (self.theirs.bbox_head, self.ours.bbox_head):
            head.heatmap_head[1].weight.div_(sizes["dense_heatmap"])
            for name in (*BRANCHES, "heatmap"):
                # Centres hold the cell's position already.
                child(head.prediction_heads[0], name)[1].weight.div_(1.0 if name == "center" else sizes[name])

    def _view(self, neck: Tensor, points: Tensor, batch: Any) -> Iterator[Row]:
        lift, seen = self.theirs.view_transform, {}
        hooks = [
            lift.dtransform.register_forward_pre_hook(lambda _, inputs: seen.update(depth=inputs[0])),
            lift.depthnet.register_forward_hook(lambda _, __, output: seen.update(lifted=output)),
            lift.downsample.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0])),
        ]
        matrices = metas(self.calibration, self.ours)
        camera_bev = lift(neck[None], [points.clone()], **matrices, metas=None)
        for hook in hooks:
            hook.remove()
        differing = int(((seen["depth"] - batch["depth"]).abs() > 1e-3).sum())
        hit = int((seen["depth"] > 0).sum())
        share = differing / hit
        yield Row(stage="depth image", error=share, note=f"share of pixels: {differing} of {hit} differ")
        weights, pixels = self.ours.view_transform.lift(neck, seen["depth"])
        logits, context = seen["lifted"].permute(0, 2, 3, 1).split([lift.D, lift.C], dim=-1)
        yield Row(stage="depth weights", error=relative(weights, logits.softmax(-1)))
        yield Row(stage="pixel features", error=relative(pixels, context))
        tables = [batch[name] for name in self.ours.pool_tables]
        cells = pool_bev(logits.softmax(-1), context, tables)
        pooled = seen["pooled"][0].flatten(1).T
        moved, touched = self._moved(matrices, tables, len(pooled))
        untouched = torch.ones(len(pooled), dtype=torch.bool)
        untouched[touched] = False
        yield Row(
            stage="BEV pooling, cells with the same lifted points",
            error=relative(cells[untouched], pooled[untouched]),
            note=f"{moved} lifted points fall beyond a cell's edge by rounding, {len(touched)} cells",
        )
        yield Row(stage="BEV pooling, all cells", error=relative(cells, pooled), note="with those points")
        own = self.ours.view_transform.downsample(seen["pooled"])
        yield Row(stage="view downsampling", error=relative(own, camera_bev))
        return camera_bev  # type: ignore[return-value]

    def _moved(self, matrices: dict[str, Tensor], tables: list[Tensor], count: int) -> tuple[int, Tensor]:
        """Lifted points that the two place differently, and the cells that they are in."""
        lift = self.theirs.view_transform
        aug, extra = matrices["img_aug_matrix"], matrices["lidar_aug_matrix"]
        geometry = lift.get_geometry(
            matrices["camera2lidar"][..., :3, :3],
            matrices["camera2lidar"][..., :3, 3],
            matrices["cam_intrinsic"][..., :3, :3],
            aug[..., :3, :3],
            aug[..., :3, 3],
            extra_rots=extra[..., :3, :3],
            extra_trans=extra[..., :3, 3],
        )
        cells = ((geometry - (lift.bx - lift.dx / 2.0)) / lift.dx).long()
        kept = ((cells >= 0) & (cells < lift.nx)).all(-1)
        theirs = torch.where(kept, cells[..., 0] * int(lift.nx[1]) + cells[..., 1], -1)[0]
        theirs = theirs.permute(0, 2, 3, 1).flatten()
        ours = cells_of_products(tables, theirs.numel())
        moved = theirs != ours
        touched = torch.cat([theirs[moved], ours[moved]]).unique()
        return int(moved.sum()), touched[touched >= 0]

    def _lidar(self, points: Tensor, inputs: Any, batch: Any) -> Iterator[Row]:
        seen: dict[str, Tensor] = {}
        hook = self.theirs.pts_middle_encoder.register_forward_pre_hook(
            lambda _, args: seen.update(features=args[0], cells=args[1])
        )
        lidar_bev = self.theirs.extract_pts_feat({"points": [points.clone()]})
        hook.remove()
        _, y, z = self.ours.config.geometry.sparse_shape
        keys, order = ((seen["cells"][:, 1].long() * y + seen["cells"][:, 2]) * z + seen["cells"][:, 3]).sort()
        places, _ = SparseTableBuilder(self.ours.config.geometry).build(keys.numpy())
        rows = torch.from_numpy(in_rows(seen["features"][order].numpy(), places))
        yield Row(stage="voxel means", error=relative(batch["voxels"], rows), note=f"{len(order)} voxels")
        yield Row(stage="sparse encoder", error=relative(self.ours.lidar_branch(batch), lidar_bev))
        return lidar_bev  # type: ignore[return-value]

    def _head(self, bev: Tensor, other: dict[str, Tensor], chosen: Tensor, name: str) -> Iterator[Row]:
        """Ours with the reference's proposals, entries [1, P]; and its own choice, as far as rounding explains it."""
        head = self.ours.bbox_head
        own, free = head(bev, chosen), head(bev).chosen
        yield Row(stage=f"{name}, heatmap", error=relative(own.dense_heatmap, other["dense_heatmap"]))
        scores = other["dense_heatmap"].sigmoid()
        drift = choice_drift(*(tensor.numpy() for tensor in (chosen, scores, head.margins(scores), free)))
        alike = len(set(free[0].tolist()) & set(chosen[0].tolist()))
        note = f"{alike} of {chosen.shape[1]} alike"
        yield Row(stage=f"{name}, choice of proposals", error=drift.needed / drift.largest, note=note)
        for branch in (*BRANCHES, "heatmap"):
            yield Row(stage=f"{name}, {branch} of proposals", error=relative(getattr(own, branch), other[branch]))
        if name == "head":
            yield from self._boxes(own, other)

    def _boxes(self, own: Any, other: dict[str, Tensor]) -> Iterator[Row]:
        from mmdet3d.structures import LiDARInstance3DBoxes

        names = ("query_labels", "query_scores", *BRANCHES, "heatmap")
        (ours,) = decode({name: getattr(own, name).numpy() for name in names}, self.ours.config.geometry)
        # Their decoding writes into the predictions.
        kept = {name: value.clone() for name, value in other.items()}
        (theirs,) = self.theirs.bbox_head.predict_by_feat([[kept]], [{"box_type_3d": LiDARInstance3DBoxes}])
        boxes, scores = theirs.bboxes_3d.tensor.clone(), theirs.scores_3d
        boxes[:, 2] += boxes[:, 5] / 2
        order = scores.argsort(descending=True, stable=True)
        counted = min(len(ours), len(order))
        found, wanted = box_columns(torch.from_numpy(ours.geometry_m9)), box_columns(boxes[order])
        yield Row(
            stage="decoded boxes",
            error=max(relative(a, b) for a, b in zip(found[:counted].T, wanted[:counted].T, strict=True)),
            note=f"{len(ours)} of ours, {len(order)} of theirs",
        )
        yield Row(
            stage="decoded scores",
            error=relative(torch.from_numpy(ours.scores_m)[:counted], scores[order][:counted]),
            note=f"classes equal: {bool((torch.from_numpy(ours.labels_m) == theirs.labels_3d[order]).all())}",
        )


def cells_of_products(tables: list[Tensor], products: int) -> Tensor:
    """The cell that each product of depth weight and pixel feature is summed into, -1 where into none."""
    first, *middle, last = (table.long() for table in tables)
    columns, runs, _ = first.shape
    ends = torch.tensor([columns * runs, *(len(table) for table in middle)]).cumsum(0).tolist()
    cell_of_row = torch.full((ends[-1] + 1,), -1)
    cell_of_row[last] = torch.arange(len(last))[:, None].expand_as(last)
    for table, start, stop in reversed(list(zip(middle, ends[:-1], ends[1:], strict=True))):
        own = cell_of_row[start:stop]
        # "None" is the number of rows that there are before this table's sums.
        filled = table < start
        cell_of_row[table[filled]] = own[:, None].expand_as(table)[filled]
    found = torch.full((products + 1,), -1)
    found[first] = cell_of_row[: columns * runs].reshape(columns, runs, 1).expand_as(first)
    return found[:products]


def child(parent: Any, name: str) -> Any:
    """A child by name: ours are in a ModuleDict, mmdet3d's are attributes."""
    return dict(parent.named_children())[name]


def box_columns(boxes_m9: Tensor) -> Tensor:
    """Boxes with their yaw as sine and cosine, which do not jump."""
    yaw = boxes_m9[:, 6:7]
    return torch.cat([boxes_m9[:, :6], yaw.sin(), yaw.cos(), boxes_m9[:, 7:]], dim=1)


def relative(found: Tensor, expected: Tensor) -> float:
    """Largest difference as a share of the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())
