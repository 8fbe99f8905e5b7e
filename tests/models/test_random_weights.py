"""Random models for measurements: activations of a sound size at every depth, the same for a seed."""

from __future__ import annotations

import pytest
import torch
from synthetic_inputs import random_inputs
from torch import Tensor, nn

from altermoma.models.batch import FrameBatch, collate
from altermoma.models.fusion import FusionModel
from altermoma.models.random_weights import random_model


def make_batch(model: FusionModel) -> FrameBatch:
    return collate([random_inputs(model.config.geometry, points=3000)], model.config.geometry)


@pytest.mark.parametrize("preset", ["bevfusion-tiny", "bevfusion-tiny-pillars"])
def test_activations_have_a_sound_size_in_eval_mode(preset: str) -> None:
    model = random_model(preset, make_batch)
    assert not model.training
    seen: dict[str, float] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and not name.endswith(".bn2"):
            assert module.momentum == pytest.approx(type(module)(1).momentum, abs=0.1)
            module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: float(out.std())}))
    with torch.no_grad():
        found = model(make_batch(model))
    assert len(seen) > 20
    assert all(0.3 < size < 3 for size in seen.values()), seen
    assert 2 < float(found.dense_heatmap.abs().max()) < 7
    outputs: list[Tensor] = [found.height, found.dim, found.rot, found.vel, found.heatmap]
    assert all(0.7 < float(tensor.std()) < 1.5 for tensor in outputs)


def test_errors_are_not_blown_up() -> None:
    """A deep backbone passes a relative error of its input on without making it much larger."""
    model = random_model("bevfusion-tiny", make_batch)
    pictures = make_batch(model)["images"]
    with torch.no_grad():
        before, after = (
            model.img_backbone(x)[-1] for x in (pictures, pictures * (1 + 1e-3 * torch.randn_like(pictures)))
        )
    assert float((after - before).std() / before.std()) < 5e-3


def test_the_seed_decides_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (random_model("bevfusion-tiny", make_batch, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    state, others = again.state_dict(), other.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in first.state_dict().items())
    assert not torch.equal(first.state_dict()["img_backbone.conv1.weight"], others["img_backbone.conv1.weight"])
