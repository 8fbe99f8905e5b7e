"""One frame with all that a correct run gives for it, so that a target can check itself."""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from altermoma.deploy.stage_io import Arrays
from altermoma.errors import BundleError
from altermoma.frames import Boxes, Calibration, Frame

INPUTS_FILE = "reference/inputs.npz"
OUTPUTS_FILE = "reference/outputs.npz"

_RAW = ("images_vhw3", "points_p5", "intrinsics_v33", "camera_from_lidar_v44", "image_hw", "camera_names")
_BOXES = ("geometry_m9", "labels_m", "scores_m")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A frame as the sensors gave it, as the stages are fed, and as the model that was exported answers it.

    Attributes:
        host: every graph input that the host computes, by name.
        tensors: every output of every stage, by name.
        boxes: decoded detections.
    """

    images_vhw3: NDArray[np.uint8]
    points_p5: NDArray[np.float32]
    calibration: Calibration
    host: Arrays
    tensors: Arrays
    boxes: Boxes

    def frame(self, scene: str) -> Frame:
        """The frame as a reader would give it; the vehicle stands in the origin, as a bundle tells nothing of it."""
        return Frame(
            token="reference",
            scene=scene,
            images_vhw3=self.images_vhw3,
            points_p5=self.points_p5,
            calibration=self.calibration,
            ego_from_lidar_44=np.eye(4),
            global_from_ego_44=np.eye(4),
        )


def write_reference(folder: Path, reference: Reference) -> None:
    """Writes both files below the bundle folder; deterministic."""
    calibration = reference.calibration
    raw: Arrays = {
        "images_vhw3": reference.images_vhw3,
        "points_p5": reference.points_p5,
        "intrinsics_v33": calibration.intrinsics_v33,
        "camera_from_lidar_v44": calibration.camera_from_lidar_v44,
        "image_hw": np.asarray(calibration.image_hw, np.int64),
        "camera_names": np.asarray(calibration.camera_names, np.str_),
    }
    boxes = {name: getattr(reference.boxes, name) for name in _BOXES}
    _save(folder / INPUTS_FILE, {"raw": raw, "host": reference.host})
    _save(folder / OUTPUTS_FILE, {"tensor": reference.tensors, "boxes": boxes})


def read_reference(folder: Path) -> Reference:
    """Reads what `write_reference` wrote.

    Raises:
        BundleError: a file is no archive of arrays or lacks one of them.
    """
    inputs, outputs = _load(folder / INPUTS_FILE), _load(folder / OUTPUTS_FILE)
    raw, boxes = inputs.get("raw", {}), outputs.get("boxes", {})
    missing = [f"raw.{n}" for n in _RAW if n not in raw] + [f"boxes.{n}" for n in _BOXES if n not in boxes]
    if missing:
        raise BundleError(f"the reference frame lacks {', '.join(missing)}", remedy="export the bundle again")
    height, width = raw["image_hw"].tolist()
    return Reference(
        images_vhw3=raw["images_vhw3"],
        points_p5=raw["points_p5"],
        calibration=Calibration(
            camera_names=tuple(raw["camera_names"].tolist()),
            intrinsics_v33=raw["intrinsics_v33"],
            camera_from_lidar_v44=raw["camera_from_lidar_v44"],
            image_hw=(height, width),
        ),
        host=inputs.get("host", {}),
        tensors=outputs.get("tensor", {}),
        boxes=Boxes(**boxes),
    )


def _save(path: Path, groups: dict[str, Arrays]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    flat = {f"{group}.{name}": array for group, arrays in groups.items() for name, array in arrays.items()}
    np.savez_compressed(path, **flat)


def _load(path: Path) -> dict[str, Arrays]:
    groups: dict[str, Arrays] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for key in archive.files:
                group, _, name = key.partition(".")
                groups.setdefault(group, {})[name] = archive[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{path} is no archive of arrays: {error}", remedy="copy the bundle again") from error
    return groups
