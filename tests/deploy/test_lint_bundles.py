"""`altermoma lint BUNDLE`: every graph of a bundle that TensorRT is to read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx
import pytest
from tiny_bundle import content

from altermoma.cli.app import app
from altermoma.deploy.bundle import Bundle, write_bundle
from altermoma.errors import BundleError, ExportError

MEAN_18 = """
<ir_version: 8, opset_import: ["" : 18]>
fusion (float[1,3,4,4] camera_bev, float[1,5,4,4] lidar_bev) => (float[1,8,1,1] bev)
<int64[2] axes = {2, 3}>
{
    both = Concat<axis = 1>(camera_bev, lidar_bev)
    bev = ReduceMean(both, axes)
}
"""


def lint(*arguments: object) -> None:
    app(["lint", *map(str, arguments)], standalone_mode=False)


def test_every_precision_and_stage_is_checked(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    lint(bundle.folder, bundle.folder / "stages/fp32/head.onnx", "--target", "orin-jp62")
    assert "11 of 11 graphs suit orin-jp62" in capsys.readouterr().out


def test_findings_name_precision_and_stage(tmp_path: Path) -> None:
    made = content(("fp32",))
    broken = dataclasses.replace(
        made.graphs["fp32"]["fusion"], onnx=onnx.parser.parse_model(MEAN_18).SerializeToString()
    )
    graphs = {"fp32": {**made.graphs["fp32"], "fusion": broken}}
    written = write_bundle(tmp_path / "b", dataclasses.replace(made, graphs=graphs))
    with pytest.raises(ExportError, match=r"fp32 fusion: .*ReduceMean with axes as an input"):
        lint(written.folder, "--target", "orin-jp60")


def test_a_bundle_that_is_not_whole_is_an_error(copied: Path, tmp_path: Path) -> None:
    (copied / "stages/fp16/head.onnx").unlink()
    with pytest.raises(BundleError, match=r"missing: stages/fp16/head\.onnx"):
        lint(copied)
    with pytest.raises(BundleError, match=r"no manifest\.json"):
        lint(tmp_path)
