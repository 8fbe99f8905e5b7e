"""Fake quantisation in torch against int8 graphs in ONNX Runtime, and its gradients against their definition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from export_frames import exported, random_model
from test_int8_model import TOKENS, plans, ranges_of
from torch import nn

from altermoma.calib.insert import tensorrt_dialect
from altermoma.calib.int8 import quantised, watch
from altermoma.calib.observe import observe
from altermoma.calib.tune import data_limits, fake_quantised, frozen_norms, rounded_data, rounded_weight
from altermoma.errors import ExportError
from altermoma.export.parity import open_session, run_session
from altermoma.models.stages import stage_modules


def test_gradients_pass_inside_the_range_and_stop_outside() -> None:
    values = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.7, 2.0, 2.1], requires_grad=True)
    found = rounded_data(values, 2.0)
    found.sum().backward()
    np.testing.assert_allclose(found.detach(), np.clip(np.rint(values.detach().numpy() * 63.5), -127, 127) / 63.5)
    assert values.grad is not None
    assert values.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]


def test_weights_are_rounded_per_output_channel_and_zeros_stay() -> None:
    weight = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[:, ::2] = 0.0
    weight[2] = 0.0
    found = rounded_weight(weight)
    assert not found[weight == 0].any()
    for channel in (0, 1, 3):
        steps = found[channel] / (weight[channel].abs().max() / 127)
        torch.testing.assert_close(steps, steps.round(), atol=1e-4, rtol=0)


def test_the_model_computes_what_its_int8_graph_computes_and_is_itself_again_afterwards(tmp_path: Path) -> None:
    groups = frozenset(plans()["fusion"].groups)
    model = random_model().eval()
    statistics = observe(watch({"fusion": plans()["fusion"]}, groups), TOKENS, _fusion_inputs, tmp_path / "kept.npz")
    ranges = ranges_of(statistics, exported("fp32")).tensors
    limits = data_limits(model, {"fusion": plans()["fusion"]}, groups, ranges)
    assert len(limits) == len(plans()["fusion"].chosen(groups))
    graph = quantised(plans()["fusion"], groups, ranges["fusion"], tensorrt_dialect((10, 3)))
    inputs = _fusion_inputs("1")
    expected = run_session(open_session(graph), inputs)["bev"]
    stage = stage_modules(model)["fusion"].eval()
    tensors = [torch.from_numpy(inputs[name]) for name in stage.inputs]
    with torch.no_grad():
        before = stage(*tensors)
        with fake_quantised(model, limits):
            rounded = stage(*tensors)
        after = stage(*tensors)
    assert torch.equal(before, after)
    signal = float((before**2).sum())
    # Folded batch norms tip a few roundings the other way; the rest of the noise is the same.
    apart, noise = float(((rounded - torch.from_numpy(expected)) ** 2).sum()), float(((rounded - before) ** 2).sum())
    assert apart < 0.35 * noise
    assert noise > 1e-6 * signal


def _fusion_inputs(token: str) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(int(token))
    reference = exported("fp32").reference
    return {
        name: np.maximum(rng.normal(0, 1, reference[name].shape), 0).astype(np.float32)
        for name in ("camera_bev", "lidar_bev")
    }


def test_batch_norms_keep_their_statistics_whatever_the_mode() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    data = torch.randn(2, 3, 5, 5)
    with frozen_norms(model):
        model.train()
        held = model(data)
        assert torch.equal(held, model.eval()(data))
        model.train()
    assert model[1].training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert not torch.equal(model(data), held)


def test_other_modules_are_named() -> None:
    with pytest.raises(ExportError, match="module 0 is a ReLU"), fake_quantised(nn.Sequential(nn.ReLU()), {"0": 1.0}):
        pass
