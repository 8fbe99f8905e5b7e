"""Models with pillars in int8: their encoder is a matrix product and a maximum over points."""

from __future__ import annotations

from pathlib import Path

import onnx
from export_frames import random_model
from synthetic_inputs import random_inputs

from altermoma.calib.export_int8 import export_int8
from altermoma.calib.int8 import all_groups, plan_stages, watch
from altermoma.calib.observe import observe
from altermoma.calib.ranges import Ranges, find_ranges, graph_key
from altermoma.calib.settings import CalibrationSettings
from altermoma.export.contract import load_contract
from altermoma.export.export_model import export_model
from altermoma.models.presets import config_of
from altermoma.recipe import ExportRecipe

PRESET = "bevfusion-tiny-pillars"


def test_a_pillar_model_becomes_int8_but_for_what_touches_coordinates(tmp_path: Path) -> None:
    model = random_model(config_of(PRESET)).eval()
    inputs = dict(random_inputs(model.config.geometry, points=3000))
    fp32 = export_model(model, inputs, preset=PRESET, precision="fp32", trt_version="10.3.0", recipe=ExportRecipe())
    contract = load_contract(PRESET)
    plans = plan_stages(fp32.stages, contract)
    groups = frozenset(group for group in all_groups(plans) if not group.startswith("head/"))
    statistics = observe(watch(plans, groups), ["one"], lambda _: inputs, tmp_path / "kept.npz")
    settings = CalibrationSettings(method="minmax")
    ranges = Ranges(
        model=PRESET,
        graphs={name: graph_key(graph) for name, graph in fp32.stages.items()},
        manifest="m",
        frames=1,
        settings=settings.to_dict(),
        tensors=find_ranges(statistics, settings),
    )
    found = export_int8(fp32, plans, contract, ranges, groups, 0.5)
    assert found.tensorrt.findings == []
    assert found.shares["camera"].part > 0.9
    first, second = plans["lidar"].products
    assert first.kept == "touches coordinates, boxes or scores"
    assert not second.kept
    assert min(db for tensors in found.signal_db["onnxruntime"].values() for db in tensors.values()) > 15
    assert any(item.data_type == onnx.TensorProto.INT8 for item in found.onnxruntime["fusion"].graph.initializer)
