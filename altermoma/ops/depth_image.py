"""LiDAR points seen by each camera: the sparse depth image that DepthLSS takes beside the picture."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from altermoma.frames import Calibration
from altermoma.geometry import ImageGeometry
from altermoma.ops.images import image_warp


def depth_images(points_p3: NDArray[np.float32], calibration: Calibration, image: ImageGeometry) -> NDArray[np.float32]:
    """float32 [V, 1, H, W], metres along the optical axis; 0 where no point falls.

    Points are in the unaugmented LiDAR frame. Where several fall on one pixel the last in the cloud wins, as in
    mmdet3d's DepthLSSTransform.
    """
    warp = image_warp(calibration.image_hw, image)
    cameras = len(calibration.camera_names)
    depth_v1hw = np.zeros((cameras, 1, image.height, image.width), np.float32)
    homogeneous_p4 = np.concatenate([points_p3[:, :3], np.ones((len(points_p3), 1), np.float32)], axis=1)
    for view in range(cameras):
        project_34 = calibration.intrinsics_v33[view] @ calibration.camera_from_lidar_v44[view, :3]
        u, v, metres = (homogeneous_p4 @ project_34.T.astype(np.float32)).T
        ahead = metres > 1e-3
        metres = metres[ahead]
        column = np.floor(u[ahead] / metres * warp.scale - warp.left)
        row = np.floor(v[ahead] / metres * warp.scale - warp.top)
        seen = (column >= 0) & (column < image.width) & (row >= 0) & (row < image.height)
        depth_v1hw[view, 0, row[seen].astype(np.int32), column[seen].astype(np.int32)] = metres[seen]
    return depth_v1hw
