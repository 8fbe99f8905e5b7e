"""The model cut into the stages that become ONNX graphs and engines. Names are the stage contract's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from altermoma.models.fusion import FusionModel
from altermoma.models.head import BRANCHES
from altermoma.ops.sparse_tables import segment_names


class StageModule(nn.Module):
    """One stage for one frame: tensors in, tensors out, in the order of `inputs` and `outputs`.

    Children keep the model's names, so that exported nodes are named by module path.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class CameraStage(StageModule):
    """Pictures and depth images to depth weights and pixel features."""

    inputs = ("images", "depth")
    outputs = ("depth_weights", "pixel_features")

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = model.img_backbone, model.img_neck
        self.view_transform = model.view_transform

    def forward(self, images: Tensor, depth: Tensor) -> tuple[Tensor, Tensor]:
        features = self.img_neck(self.img_backbone(images))
        return self.view_transform(features, depth)  # type: ignore[no-any-return]


class ViewStage(StageModule):
    """Lifted pixels to the camera's bird's-eye view."""

    outputs = ("camera_bev",)

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.inputs = ("depth_weights", "pixel_features", *model.pool_tables)
        self.view_transform = model.view_transform
        # A bound method is no child, which would put the whole model into this stage.
        self._pool = model.pool

    def forward(self, depth_weights: Tensor, pixel_features: Tensor, *tables: Tensor) -> Tensor:
        return self._pool(depth_weights, pixel_features, list(tables), 1)


class LidarStage(StageModule):
    """Voxels and tables to the LiDAR's bird's-eye view."""

    outputs = ("lidar_bev",)

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.pts_middle_encoder = model.pts_middle_encoder
        levels = model.config.geometry.lidar_levels
        self.inputs = (
            "voxels",
            *(name for level in range(levels + 1) for name in segment_names(f"subm_table_{level}")),
            *(name for level in range(levels) for name in segment_names(f"down_table_{level}")),
            "out_table",
            "bev_table",
        )

    def forward(self, voxels: Tensor, *tables: Tensor) -> Tensor:
        named = dict(zip(self.inputs[1:], tables, strict=True))
        return self.pts_middle_encoder(voxels, named, 1)  # type: ignore[no-any-return]


class PillarStage(StageModule):
    """Points in pillars to the LiDAR's bird's-eye view."""

    outputs = ("lidar_bev",)

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.pts_voxel_encoder = model.pts_voxel_encoder
        self.inputs = model.pts_voxel_encoder.inputs

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.pts_voxel_encoder(dict(zip(self.inputs, tensors, strict=True)), 1)  # type: ignore[no-any-return]


class FusionStage(StageModule):
    """Both views to the map the head reads."""

    inputs = ("camera_bev", "lidar_bev")
    outputs = ("bev",)

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.fusion_layer = model.fusion_layer
        self.pts_backbone, self.pts_neck = model.pts_backbone, model.pts_neck

    def forward(self, camera_bev: Tensor, lidar_bev: Tensor) -> Tensor:
        return self.pts_neck(self.pts_backbone(self.fusion_layer(camera_bev, lidar_bev)))  # type: ignore[no-any-return]


class HeadStage(StageModule):
    """The map to raw box properties; `altermoma.ops.decode` makes boxes of them. And to the ground's classes."""

    inputs = ("bev",)

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.bbox_head, self.map_head = model.bbox_head, model.map_head
        self.boxes = ("query_labels", "query_scores", *BRANCHES, "heatmap")
        self.outputs = self.boxes if self.map_head is None else (*self.boxes, "map")

    def forward(self, bev: Tensor) -> tuple[Tensor, ...]:
        found = self.bbox_head(bev)
        boxes = found.query_labels.to(torch.int32), *(getattr(found, name) for name in self.boxes[1:])
        return boxes if self.map_head is None else (*boxes, self.map_head(bev))

    def choice(self, bev: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Entries [1, P] of the heatmap, flat [class, x, y], that are the proposals; all its scores and their margins.

        Scores and margins (`TransFusionHead.margins`) are flat [1, classes * X * Y].
        """
        found = self.bbox_head(bev)
        scores = found.dense_heatmap.sigmoid()
        return found.chosen, scores.flatten(1), self.bbox_head.margins(scores).flatten(1)


def stage_modules(model: FusionModel) -> dict[str, StageModule]:
    """The stages in the order they run; they share the model's weights."""
    return {
        "camera": CameraStage(model),
        "view": ViewStage(model),
        "lidar": PillarStage(model) if model.config.geometry.lidar == "pillars" else LidarStage(model),
        "fusion": FusionStage(model),
        "head": HeadStage(model),
    }
