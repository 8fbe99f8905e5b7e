"""Sixteen bits where they are asked for and nowhere else; the factor of fp16; batches computed in parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_training_loop import RECIPE, KilledError, ToyData, objective, run, same, toy
from test_training_model import Frames, preset
from torch import nn

from altermoma.data.dataset import Sample
from altermoma.errors import AltermomaError, CheckpointError, RecipeError
from altermoma.models.batch import collate
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import build
from altermoma.recipe import ComputeRecipe, TrainPrecision, TrainRecipe
from altermoma.training.log import read_log
from altermoma.training.loop import StepReport, train
from altermoma.training.losses import LossTerms
from altermoma.training.objective import detection_objective
from altermoma.training.precision import LossScale, mixed

HALVES: tuple[TrainPrecision, ...] = ("bf16", "fp16")
CPU = torch.device("cpu")


def test_the_factor_moves_as_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LossScale, "GROW_AFTER", 5)
    theirs = torch.amp.GradScaler("cpu", growth_interval=5)
    parameter = nn.Parameter(torch.ones(1))
    optimiser, ours = torch.optim.SGD([parameter], 0.0), LossScale()
    rng = np.random.default_rng(0)
    for finite in rng.random(60) < 0.8:
        optimiser.zero_grad()
        theirs.scale(parameter * 1.0).backward()
        assert float(parameter.grad) == ours.value
        parameter.grad.fill_(1.0 if finite else float("inf"))
        theirs.unscale_(optimiser)
        theirs.step(optimiser)
        theirs.update()
        ours.update(bool(finite))
        assert ours.value == theirs.get_scale()


@pytest.mark.parametrize("precision", HALVES)
def test_half_precision_learns_what_full_precision_learns(tmp_path: Path, precision: TrainPrecision) -> None:
    recipe = dataclasses.replace(RECIPE, steps=60, lr=3e-2)
    full = read_log(run(tmp_path / "full", recipe).log)
    half = read_log(run(tmp_path / "half", recipe, compute=ComputeRecipe(precision=precision)).log)
    assert half[0]["total"] == pytest.approx(full[0]["total"], rel=3e-2)
    assert half[0]["total"] != full[0]["total"]
    assert np.mean([line["total"] for line in half[-10:]]) < 0.5 * half[0]["total"]


@pytest.mark.parametrize("precision", HALVES)
def test_networks_of_the_detector_run_in_half_heads_and_losses_do_not(precision: TrainPrecision) -> None:
    model, samples = preset(), Frames().samples
    seen: dict[str, torch.dtype] = {}
    inner = ("img_backbone.conv1", "pts_middle_encoder.conv_input", "pts_backbone.blocks.0.0")
    watched = (*inner, "bbox_head.shared_conv")
    for name in watched:
        part = model.get_submodule(name)
        part.register_forward_hook(lambda _m, _i, out, name=name: seen.update({name: out.dtype}))
    loss = detection_objective(TrainRecipe())
    full = loss(model, samples)
    with mixed(CPU, precision):
        half = loss(model, samples)
    expected = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert seen == dict.fromkeys(inner, expected) | {"bbox_head.shared_conv": torch.float32}
    assert half.total.dtype == torch.float32
    assert float(half.heatmap.detach()) == pytest.approx(float(full.heatmap.detach()), rel=0.05)
    assert half.depth is not None
    assert full.depth is not None
    assert float(half.depth.detach()) == pytest.approx(float(full.depth.detach()), rel=0.05)
    half.total.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert {g.dtype for g in gradients} == {torch.float32}
    assert all(torch.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("name", ["bevfusion-tiny", "bevfusion-tiny-pillars", "bevfusion-tiny-swin"])
def test_a_whole_pass_in_bf16_is_near_that_in_float32(name: str) -> None:
    """Training mode, so that the norms take their own statistics; gradients compared as one vector."""
    from synthetic_inputs import random_inputs

    torch.manual_seed(0)
    model = build(name).train()
    batch = collate([random_inputs(model.config.geometry, seed=i) for i in range(2)], model.config.geometry)
    found = []
    for precision in ("fp32", "bf16"):
        model.zero_grad()
        with mixed(CPU, precision):  # type: ignore[arg-type]
            outputs = model(batch)
        outputs.dense_heatmap.float().square().mean().backward()
        reached = [p.grad.flatten() for p in model.pts_backbone.parameters() if p.grad is not None]
        found.append((outputs.dense_heatmap.detach().float(), torch.cat(reached)))
    (full, slope), (half, half_slope) = found
    assert 0 < float((half - full).norm() / full.norm()) < 0.05
    assert float(nn.functional.cosine_similarity(slope, half_slope, dim=0)) > 0.97


def overflowing(steps: Sequence[int]) -> Any:
    """The toy's objective with an overflow in the network, norms included, at some steps."""

    def loss(model: nn.Module, samples: Sequence[Sample]) -> LossTerms:
        if int(samples[0].token[1:].partition(".")[0]) in steps:
            samples = [dataclasses.replace(s, inputs={"x": s.inputs["x"] * np.float32(1e30)}) for s in samples]
        return objective(model, samples)

    return loss


@pytest.fixture
def small_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy's own gradients overflow with the usual one, which would be found and halved first."""
    monkeypatch.setattr(LossScale, "of", lambda precision: LossScale(value=1024.0))


@pytest.mark.usefixtures("small_factor")
def test_a_step_that_overflows_in_fp16_is_left_out_and_leaves_nothing_behind(tmp_path: Path) -> None:
    states: list[dict[str, torch.Tensor]] = []
    model = toy()

    def keep(_: StepReport) -> None:
        states.append({k: v.clone() for k, v in model.state_dict().items()})

    recipe = dataclasses.replace(RECIPE, ema_decay=0.0)
    compute = ComputeRecipe(precision="fp16")
    log = train(
        model, ToyData(), recipe, folder=tmp_path, objective=overflowing([4, 5]), on_step=keep, compute=compute
    ).log
    lines = read_log(log)
    assert [line["step"] for line in lines if line["skipped"]] == [4, 5]
    assert [line["loss_scale"] for line in lines[3:7]] == [1024, 1024, 512, 256]
    assert all(torch.equal(states[5][name], value) for name, value in states[3].items())
    assert all(torch.isfinite(value).all() for value in states[-1].values())
    assert not torch.equal(states[6]["layers.0.weight"], states[5]["layers.0.weight"])


def test_fp16_that_always_overflows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AltermomaError, match="however small") as caught:
        run(
            tmp_path,
            dataclasses.replace(RECIPE, steps=40),
            objective=overflowing(range(40)),
            compute=ComputeRecipe(precision="fp16"),
        )
    assert "bf16" in caught.value.remedy


def test_bf16_that_is_not_finite_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(AltermomaError, match="diverged at step 3"):
        run(tmp_path, objective=overflowing([3]), compute=ComputeRecipe(precision="bf16"))


@pytest.mark.usefixtures("small_factor")
@pytest.mark.parametrize("killed_at", [6, 8])
def test_fp16_resumes_bit_for_bit_with_its_factor(tmp_path: Path, killed_at: int) -> None:
    compute = ComputeRecipe(precision="fp16", accumulate=2)
    options: dict[str, Any] = {"objective": overflowing([1, 6]), "compute": compute}
    whole = run(tmp_path / "whole", **options)

    def kill(report: StepReport) -> None:
        if report.step == killed_at:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path / "cut", **options, on_step=kill)
    resumed = run(tmp_path / "cut", **options)
    assert resumed.resumed_from == 5
    assert same(resumed.model, whole.model)
    assert [line["loss_scale"] for line in read_log(resumed.log)] == [
        line["loss_scale"] for line in read_log(whole.log)
    ]
    assert read_log(resumed.log)[-1]["loss_scale"] == 256


@pytest.mark.parametrize("other", [{"precision": "bf16"}, {"accumulate": 2}])
def test_another_precision_or_other_parts_are_another_run(tmp_path: Path, other: dict[str, Any]) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        run(tmp_path, compute=ComputeRecipe(**other))
    assert run(tmp_path, compute=ComputeRecipe(device="cpu", workers=0)).resumed_from == RECIPE.steps


def test_tf32_without_a_gpu_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="tf32 on cpu"):
        run(tmp_path, compute=ComputeRecipe(precision="tf32"))


class Linear(nn.Module):
    """Without norms, parts of a batch are the batch."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(8)
            self.layers = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x.double())
        return found


def test_parts_of_a_batch_add_up_to_the_batch(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, batch_size=6, grad_clip=0.3)
    whole, parts = (
        train(
            Linear(),
            ToyData(),
            recipe,
            folder=tmp_path / str(n),
            objective=objective,
            compute=ComputeRecipe(accumulate=n),
        )
        for n in (1, 3)
    )
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(parts.model.state_dict()[name], weight, atol=1e-12, rtol=1e-12)
    for line, wanted in zip(read_log(parts.log), read_log(whole.log), strict=True):
        assert line["total"] == pytest.approx(wanted["total"], rel=1e-12)
        assert line["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-12)


def test_a_batch_that_cannot_be_parted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="batch_size = 2 among 1 processes in 4 parts"):
        run(tmp_path, compute=ComputeRecipe(accumulate=4))


def test_a_distilled_model_trains_in_half_precision(tmp_path: Path) -> None:
    """A teacher, masks, averaging and parts at once."""
    from altermoma.training.distill import Teacher

    student, teacher = preset(), preset().eval()
    channels = [teacher.get_parameter(n).shape[1] for n in ("fusion_layer.0.weight", "bbox_head.shared_conv.weight")]
    objective = detection_objective(
        TrainRecipe(),
        Teacher(model=teacher, fuser_channels=torch.arange(channels[0]), head_channels=torch.arange(channels[1])),
    )
    name = "pts_backbone.blocks.0.0.weight"
    stays = torch.rand_like(student.get_parameter(name)) > 0.5
    recipe = TrainRecipe(steps=2, batch_size=2, ema_decay=0.9)
    result = train(
        student,
        Frames(),
        recipe,
        folder=tmp_path,
        objective=objective,
        masks={name: stays},
        compute=ComputeRecipe(precision="bf16", accumulate=2),
    )
    assert isinstance(result.model, FusionModel)
    assert not result.model.get_parameter(name)[~stays].any()
    assert all(line["teacher"] > 0 for line in read_log(result.log))
    with pytest.raises(CheckpointError, match="another run"):
        train(
            preset(),
            Frames(),
            recipe,
            folder=tmp_path,
            masks={name: stays},
            compute=ComputeRecipe(precision="bf16", accumulate=2),
        )
