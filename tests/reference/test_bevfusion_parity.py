"""Our paper-scale presets against mmdet3d's BEVFusion, with the same random weights and a real frame.

Runs where mmdet3d and spconv are installed and ALTERMOMA_MMDET3D names an mmdetection3d checkout; docs/reference.md has
the recipe and the last result. ALTERMOMA_PARITY_REPORT names a file that the table is appended to.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from bevfusion_pair import Comparison, Row, build_pair

from altermoma.data.nuscenes import NuScenesReader

pytestmark = [pytest.mark.reference, pytest.mark.real, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
LOOSE = {
    # Pixels on whose edge a point falls, and lifted points on a cell's edge: float32 in another order.
    "depth image": 2e-3,
    "BEV pooling, all cells": 2e-2,
}
TOLERANCE = 1e-4
WHOLE = 2e-3
"""With those pixels and points."""


@pytest.mark.parametrize("preset", ["bevfusion-mit-swint-voxelnet", "bevfusion-mit-r101-second"])
def test_every_stage_equals_mmdet3ds(preset: str, checkout: Path, real_nuscenes: Path) -> None:
    reader = NuScenesReader(real_nuscenes, "v1.0-mini", sweeps=1)
    frame = reader.read(reader.tokens("mysplit")[0])
    sweeps = np.fromfile(real_nuscenes.parent / "nuscenes_ten_sweeps.bin", np.float16).reshape(-1, 5)
    theirs, ours = build_pair(preset, checkout)
    comparison = Comparison(theirs, ours, frame.images_vhw3, frame.calibration)
    rows = list(comparison.rows(sweeps.astype(np.float32)))
    report(preset, rows)
    assert len(rows) > 20
    for row in rows:
        tolerance = WHOLE if row.stage.startswith("whole frame") else TOLERANCE
        assert row.error <= LOOSE.get(row.stage, tolerance), row


def report(preset: str, rows: list[Row]) -> None:
    """Appends a table to the file that the environment names."""
    path = os.environ.get("ALTERMOMA_PARITY_REPORT")
    if path:
        lines = [f"### {preset}", "", "| stage | largest relative error | |", "|---|---|---|"]
        lines += [f"| {row.stage} | {row.error:.1e} | {row.note} |" for row in rows]
        with Path(path).open("a", encoding="utf-8") as stream:
            stream.write("\n".join(lines) + "\n\n")
