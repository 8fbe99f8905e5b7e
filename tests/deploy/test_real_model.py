"""The shipped preset, exported: a bundle must answer as torch does, and check itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from describe import describe_graph

from altermoma.deploy.buckets import Buckets, Limits
from altermoma.deploy.bundle import Bundle, BundleContent, write_bundle
from altermoma.deploy.manifest import AxisRange
from altermoma.deploy.pipeline import NO_POINTS, Pipeline
from altermoma.deploy.reference import Reference
from altermoma.deploy.self_check import check_bundle
from altermoma.frames import CLASS_NAMES, Calibration
from altermoma.ops.decode import decode
from altermoma.ops.prepare import FramePreparer
from altermoma.ops.sparse_tables import SEGMENTS
from altermoma.recipe import ExportRecipe

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.slow

PRESET = "bevfusion-tiny"


def calibration() -> Calibration:
    """Six level cameras around the vehicle, 60 degrees apart."""
    poses = np.tile(np.eye(4), (6, 1, 1))
    for view in range(6):
        angle = np.pi / 3 * view
        sine, cosine = np.sin(angle), np.cos(angle)
        poses[view, :3, :3] = [[sine, -cosine, 0], [0, 0, -1], [cosine, sine, 0]]
        poses[view, :3, 3] = (0.0, 0.5, -0.3)
    intrinsics = np.tile(np.array([[506.0, 0, 320], [0, 506, 180], [0, 0, 1]]), (6, 1, 1))
    names = tuple(f"CAM_{view}" for view in range(6))
    return Calibration(camera_names=names, intrinsics_v33=intrinsics, camera_from_lidar_v44=poses, image_hw=(360, 640))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Reference]:
    from altermoma.export.contract import load_contract
    from altermoma.export.export_model import export_model
    from altermoma.models.presets import build

    torch.manual_seed(0)
    model = build(PRESET).eval()
    geometry = model.config.geometry
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 360, 640, 3), dtype=np.uint8)
    points = rng.normal(0, (12, 12, 1, 20, 0.01), (8000, 5)).astype(np.float32)
    host = dict(FramePreparer(geometry).prepare_parts(images, points, calibration()))
    # Untrained scores lie so close together that top-k is a matter of rounding; the parity of real ones is export's.
    loose = ExportRecipe(fp32_tolerance=10.0, fp32_frame_tolerance=10.0)
    result = export_model(model, host, preset=PRESET, precision="fp32", trt_version="8.5.2", recipe=loose)
    axes = {n: AxisRange(min=a.minimum, opt=a.optimum, max=a.maximum) for n, a in load_contract(PRESET).axes.items()}
    graphs = {
        stage: describe_graph(graph.SerializeToString(), name=stage, axes=axes)
        for stage, graph in result.stages.items()
    }
    reference = Reference(
        images_vhw3=images,
        points_p5=points,
        calibration=calibration(),
        host=host,
        tensors=dict(result.reference),
        boxes=decode(result.reference, geometry)[0],
    )
    folder = tmp_path_factory.mktemp("real") / "bundle"
    content = BundleContent(
        name=PRESET,
        recipe={},
        geometry=geometry,
        class_names=CLASS_NAMES,
        graphs={"fp32": graphs},
        reference=reference,
        tolerances={"fp32": 1e-4},
    )
    return write_bundle(folder, content), reference


def test_stages_before_top_k_equal_torch(exported: tuple[Bundle, Reference]) -> None:
    checks = check_bundle(exported[0]).tensors
    before = [c for c in checks if c.stage != "head"]
    assert {c.tensor for c in before} == {"depth_weights", "pixel_features", "camera_bev", "lidar_bev", "bev"}
    assert max(c.difference for c in before) < 1e-5


def test_dynamic_axes_are_those_of_the_contract(exported: tuple[Bundle, Reference]) -> None:
    stages = exported[0].stages("fp32")
    assert set(stages["lidar"].axes) == {
        "N0",
        "N3",
        *(f"N{level}_{segment}" for level in range(3) for segment in SEGMENTS),
    }
    assert set(stages["view"].axes) == {"R1", "R2"}
    for record in stages.values():
        for spec in record.inputs:
            assert all(size >= 1 for size in record.sizes(spec, "min"))


def test_empty_cloud_gives_what_torch_gives_without_voxels(
    exported: tuple[Bundle, Reference], monkeypatch: pytest.MonkeyPatch
) -> None:
    from altermoma.models.presets import build
    from altermoma.models.stages import stage_modules

    bundle, reference = exported
    geometry = bundle.manifest.geometry
    empty = np.zeros((0, 5), np.float32)
    host = FramePreparer(geometry).prepare_parts(reference.images_vhw3, empty, reference.calibration)
    torch.manual_seed(0)
    stage = stage_modules(build(PRESET).eval())["lidar"]
    with torch.inference_mode():
        without = stage(*(torch.from_numpy(np.asarray(host[name])) for name in stage.inputs)).numpy()
    assert np.abs(without).max() == 0.0

    pipeline = Pipeline.from_bundle(bundle)
    seen: list[np.ndarray] = []
    fusion = pipeline.runners["fusion"]
    run = fusion.run
    monkeypatch.setattr(fusion, "run", lambda tensors: seen.append(tensors["lidar_bev"]) or run(tensors))
    found = pipeline(reference.images_vhw3, empty, reference.calibration)
    assert found.warnings == (NO_POINTS,)
    np.testing.assert_array_equal(seen[0], without)


def test_readme_names_every_stage(exported: tuple[Bundle, Reference]) -> None:
    text = (Path(exported[0].folder) / "README.md").read_text()
    for stage in ("camera", "view", "lidar", "fusion", "head"):
        assert f"trtexec --onnx=stages/fp32/{stage}.onnx" in text


def test_padded_tables_change_no_output(exported: tuple[Bundle, Reference]) -> None:
    """Rows of buckets go through biases and ReLUs like others, and reach no cell."""
    bundle, reference = exported
    geometry, stages = bundle.manifest.geometry, bundle.stages("fp32")
    buckets = Buckets(Limits.of_stages(stages, geometry.lidar_levels + 1, pillars=False))
    padded = FramePreparer(geometry, buckets).prepare_parts(
        reference.images_vhw3, reference.points_p5, reference.calibration
    )
    assert len(padded["voxels"]) > 1.1 * len(reference.host["voxels"])
    assert padded["pool_depth"].shape != reference.host["pool_depth"].shape
    runners = Pipeline.from_bundle(bundle).runners
    for stage in ("lidar", "view"):
        wanted = runners[stage].run({**reference.host, **reference.tensors})
        found = runners[stage].run({**reference.tensors, **padded})
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-6 * np.abs(array).max(), err_msg=name)
