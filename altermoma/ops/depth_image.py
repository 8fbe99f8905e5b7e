"""LiDAR points seen by each camera: the sparse depth image that DepthLSS takes beside the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.frames import Calibration
from altermoma.geometry import ImageGeometry
from altermoma.ops import point_kernels as kernels
from altermoma.ops.images import image_warp


def depth_images(points_p3: NDArray[np.float32], calibration: Calibration, image: ImageGeometry) -> NDArray[np.float32]:
    """float32 [V, 1, H, W], metres along the optical axis; 0 where no point falls.

    Points are in the unaugmented LiDAR frame. Where several fall on one pixel the last in the cloud wins, as in
    mmdet3d's DepthLSSTransform.
    """
    warp = image_warp(calibration.image_hw, image)
    projections_v34 = calibration.intrinsics_v33 @ calibration.camera_from_lidar_v44[:, :3]
    depth_vhw = np.zeros((len(calibration.camera_names), image.height, image.width), np.float32)
    kernels.draw_depth(
        np.ascontiguousarray(points_p3, np.float32),
        projections_v34.astype(np.float32),
        np.array((warp.scale, warp.left, warp.top), np.float32),
        depth_vhw,
    )
    return depth_vhw[:, None]
