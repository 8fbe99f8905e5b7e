"""Where the sensors sit: the calibration of a nuScenes vehicle, cameras scaled to the rendered image size.

Rotations are unit quaternions (w, x, y, z) that turn sensor coordinates into ego coordinates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]

IMAGE_WIDTH, IMAGE_HEIGHT = 640, 360
IMAGE_SCALE = IMAGE_WIDTH / 1600


@dataclass(frozen=True, kw_only=True)
class Mount:
    """A sensor on the ego vehicle.

    Attributes:
        translation: metres, ego frame. rotation: quaternion.
        intrinsic: fx = fy, cx, cy of the 1600 x 900 original; zeros for other sensors.
        lead: seconds by which its key frame exposure precedes the LiDAR's.
    """

    channel: str
    modality: str
    translation: Vector
    rotation: Quaternion
    intrinsic: Vector = (0.0, 0.0, 0.0)
    lead: float = 0.0

    def matrix(self) -> Array:
        """Scaled 3 x 3 camera matrix."""
        f, cx, cy = (v * IMAGE_SCALE for v in self.intrinsic)
        return np.array([[f, 0.0, cx], [0.0, f, cy], [0.0, 0.0, 1.0]])

    def ego_from_sensor(self) -> Array:
        """3 x 3 rotation."""
        return rotation_matrix(self.rotation)


def rotation_matrix(q: Quaternion) -> Array:
    w, x, y, z = np.asarray(q) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def yaw_quaternion(yaw: float) -> Quaternion:
    return float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))


LIDAR = Mount(
    channel="LIDAR_TOP",
    modality="lidar",
    translation=(0.943713, 0.0, 1.84023),
    rotation=(0.7077955119164311, -0.006492241857679686, 0.010646214602139482, -0.7063073142912114),
)

CAMERAS: tuple[Mount, ...] = (
    Mount(
        channel="CAM_FRONT",
        modality="camera",
        translation=(1.70079, 0.01594, 1.51096),
        rotation=(-0.4998015430554755, 0.5030316162514281, -0.4997798114411504, 0.49737083819489186),
        intrinsic=(1266.417203046554, 816.2670197447984, 491.50706579294757),
        lead=0.035,
    ),
    Mount(
        channel="CAM_FRONT_RIGHT",
        modality="camera",
        translation=(1.55085, -0.49340, 1.49575),
        rotation=(0.20603479288882023, -0.2026940539967368, 0.6824507837225665, -0.6713610894221409),
        intrinsic=(1260.8474446004698, 807.968244525554, 495.3344268742088),
        lead=0.027,
    ),
    Mount(
        channel="CAM_FRONT_LEFT",
        modality="camera",
        translation=(1.52388, 0.49463, 1.50933),
        rotation=(0.6757265040490897, -0.6736266528015484, 0.21214014860685004, -0.21122826920192475),
        intrinsic=(1272.5979470598488, 826.6154927353808, 479.75165386361925),
        lead=0.043,
    ),
    Mount(
        channel="CAM_BACK",
        modality="camera",
        translation=(0.02833, 0.00345, 1.57910),
        rotation=(0.5037872665570173, -0.49740249800120007, -0.4941850224740791, 0.5045496096514881),
        intrinsic=(809.2209905677063, 829.2196003259838, 481.77842384512485),
        lead=0.010,
    ),
    Mount(
        channel="CAM_BACK_LEFT",
        modality="camera",
        translation=(1.03569, 0.48480, 1.59097),
        rotation=(-0.6924185586059354, 0.7031619418178131, -0.11648343028801025, 0.11203318144826209),
        intrinsic=(1256.7414812095406, 792.1125740559628, 492.7757465151356),
        lead=0.002,
    ),
    Mount(
        channel="CAM_BACK_RIGHT",
        modality="camera",
        translation=(1.01488, -0.48057, 1.56240),
        rotation=(-0.1228098001739398, 0.13240084180727207, 0.7004305823327249, -0.690496031417272),
        intrinsic=(1259.5137405846733, 807.2529053838625, 501.19579884916527),
        lead=0.019,
    ),
)

RADARS: tuple[Mount, ...] = (
    Mount(
        channel="RADAR_FRONT", modality="radar", translation=(3.412, 0.0, 0.5), rotation=yaw_quaternion(0.0), lead=0.008
    ),
    Mount(
        channel="RADAR_FRONT_LEFT",
        modality="radar",
        translation=(2.422, 0.8, 0.78),
        rotation=yaw_quaternion(1.58),
        lead=0.014,
    ),
    Mount(
        channel="RADAR_FRONT_RIGHT",
        modality="radar",
        translation=(2.422, -0.8, 0.77),
        rotation=yaw_quaternion(-1.59),
        lead=0.004,
    ),
    Mount(
        channel="RADAR_BACK_LEFT",
        modality="radar",
        translation=(-0.562, 0.628, 0.53),
        rotation=yaw_quaternion(3.05),
        lead=0.011,
    ),
    Mount(
        channel="RADAR_BACK_RIGHT",
        modality="radar",
        translation=(-0.562, -0.618, 0.53),
        rotation=yaw_quaternion(-3.06),
        lead=0.017,
    ),
)

SENSORS: tuple[Mount, ...] = (LIDAR, *CAMERAS, *RADARS)
