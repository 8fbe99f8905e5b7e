"""Several processes give what one gives for the whole batch: norms, losses, gradients, weights, and after a kill."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from crew import Crew
from test_training_loop import RECIPE, KilledError, ToyData
from test_training_model import Frames, preset
from torch import nn
from training_standins import GEOMETRY, Outputs, random_outputs, random_truth

from altermoma.data.dataset import Sample
from altermoma.errors import RecipeError
from altermoma.models.batch import FrameBatch, collate
from altermoma.models.pillars import SlotNorm
from altermoma.models.ranks import ALONE, Ranks
from altermoma.models.sparse_encoder import RowNorm
from altermoma.models.synced_norm import SyncedNorms
from altermoma.recipe import ComputeRecipe, TrainRecipe
from altermoma.training.depth import depth_loss
from altermoma.training.distill import Maps, Teacher
from altermoma.training.loader import shares
from altermoma.training.log import read_log
from altermoma.training.loop import StepReport, train
from altermoma.training.losses import LossTerms, detection_loss

EXACT = {"atol": 1e-10, "rtol": 1e-10}


@pytest.fixture(scope="module")
def two() -> Iterator[Crew]:
    with Crew(2) as crew:
        yield crew


@pytest.fixture(scope="module")
def three() -> Iterator[Crew]:
    with Crew(3) as crew:
        yield crew


def norms(values: Sequence[torch.Tensor], weight: torch.Tensor) -> dict[str, torch.Tensor]:
    """One training pass of batch norm on this process's values, against made-up weights of the loss."""
    ranks = Ranks.here()
    mine = (torch.cat(list(values)) if ranks.size == 1 else values[ranks.rank]).clone().requires_grad_()
    norm = {2: nn.BatchNorm1d, 4: nn.BatchNorm2d}[mine.ndim](mine.shape[1]).double()
    with torch.no_grad():
        norm.weight.copy_(weight)
    with SyncedNorms() if ranks.size > 1 else torch.enable_grad():
        found = norm(mine)
    (found.sin() * found).sum().backward()
    return {"out": found.detach(), "grad": mine.grad, "weight": norm.weight.grad, "bias": norm.bias.grad} | {
        name: buffer.double() for name, buffer in norm.named_buffers()
    }


@pytest.mark.parametrize("shape", [(3,), (3, 5, 4)])
def test_batch_norm_over_processes_is_that_of_all_frames(two: Crew, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    values = [3 + torch.randn(size, *shape, dtype=torch.float64, generator=generator) for size in (4, 7)]
    weight = torch.rand(3, dtype=torch.float64, generator=generator)
    whole, parts = norms(values, weight), two.results(norms, values, weight)
    for key in ("out", "grad"):
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), whole[key], **EXACT, msg=key)
    for key in ("weight", "bias"):  # added up with all other gradients
        torch.testing.assert_close(parts[0][key] + parts[1][key], whole[key], **EXACT, msg=key)
    for key in ("running_mean", "running_var", "num_batches_tracked"):
        for part in parts:
            torch.testing.assert_close(part[key], whole[key], **EXACT, msg=key)


def slots(rows: Sequence[torch.Tensor], tables: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    ranks = Ranks.here()
    if ranks.size == 1:
        shifted = [tables[0], tables[1] + len(rows[0])]
        mine, table = torch.cat(list(rows)), torch.cat(shifted)
    else:
        mine, table = rows[ranks.rank], tables[ranks.rank]
    mine = mine.clone().requires_grad_()
    norm = SlotNorm(mine.shape[1]).double()
    found = norm(mine, table)
    found.pow(3).sum().backward()
    return {"out": found.detach(), "grad": mine.grad, "mean": norm.running_mean, "var": norm.running_var}


@pytest.mark.parametrize("second", [6, 0])
def test_the_norm_of_pillars_too(two: Crew, second: int) -> None:
    generator = torch.Generator().manual_seed(1)
    sizes = 9, second
    rows = [torch.randn(size, 4, dtype=torch.float64, generator=generator) for size in sizes]
    tables = [torch.randint(max(size, 1), (5 if size else 0, 3), generator=generator) for size in sizes]
    whole, parts = slots(rows, tables), two.results(slots, rows, tables)
    for key in ("out", "grad"):
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), whole[key], **EXACT, msg=key)
    torch.testing.assert_close(parts[1]["mean"], whole["mean"], **EXACT)
    torch.testing.assert_close(parts[0]["var"], whole["var"], **EXACT)


def voxel_rows(rows: Sequence[torch.Tensor], voxels: Sequence[Sequence[bool]]) -> dict[str, torch.Tensor]:
    """The norm of the sparse encoder on this process's rows, of which some are no voxel."""
    ranks = Ranks.here()
    mine = (torch.cat(list(rows)) if ranks.size == 1 else rows[ranks.rank]).clone().requires_grad_()
    real = torch.tensor([real for part in voxels for real in part] if ranks.size == 1 else voxels[ranks.rank])
    norm = RowNorm(mine.shape[1]).double()
    with SyncedNorms() if ranks.size > 1 else torch.enable_grad():
        found = norm(mine, torch.zeros(1, 1), [torch.where(real, 0, 1)[:, None]])
    found.pow(3).sum().backward()
    return {"out": found.detach(), "grad": mine.grad, "mean": norm.running_mean, "var": norm.running_var}


@pytest.mark.parametrize("second", [[True], [False], [False, True]])
def test_a_process_with_hardly_a_voxel_takes_part_in_the_norm(two: Crew, second: list[bool]) -> None:
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randn(size, 4, dtype=torch.float64, generator=generator) for size in (5, len(second))]
    voxels = [[True, False, True, True, True], second]
    whole, parts = voxel_rows(rows, voxels), two.results(voxel_rows, rows, voxels)
    for key in ("out", "grad"):
        torch.testing.assert_close(torch.cat([part[key] for part in parts]), whole[key], **EXACT, msg=key)
    for key in ("mean", "var"):
        for part in parts:
            torch.testing.assert_close(part[key], whole[key], **EXACT, msg=key)


def picked(outputs: Outputs, frames: slice) -> Outputs:
    parts = {name: value[frames].clone().requires_grad_() for name, value in vars(outputs).items()}
    return Outputs(**parts)


class ShownModel(nn.Module):
    """Stands for the teacher's: has shown its maps already."""


def losses(frames: int, seed: int) -> dict[str, Any]:
    """All terms for this process's frames and their gradients."""
    ranks, rng = Ranks.here(), np.random.default_rng(seed)
    size = frames // ranks.size
    mine = slice(ranks.rank * size, (ranks.rank + 1) * size)
    everything = random_outputs(rng, frames, 40)
    # Unequal in every respect: a frame without boxes, one with many.
    truths = [random_truth(rng, boxes, unknown_velocity=True) for boxes in (0, 9, 3, 14)[:frames]]
    outputs = picked(everything, mine)
    terms = detection_loss(outputs, truths[mine], GEOMETRY, ranks=ranks)  # type: ignore[arg-type]
    image = GEOMETRY.image
    logits = torch.tensor(rng.normal(size=(frames, GEOMETRY.depth_count, *image.feature_hw)))
    depth = torch.tensor(rng.uniform(0, 40, (frames, 1, image.height, image.width)))
    depth *= torch.tensor(rng.random(depth.shape) > np.linspace(0.9, 0.999, frames)[:, None, None, None])
    logits = logits[mine].clone().requires_grad_()
    terms = terms.plus(depth=depth_loss(logits, depth[mine], GEOMETRY, ranks))
    terms.total.backward()
    gradients = {name: value.grad for name, value in vars(outputs).items() if value.grad is not None}
    return {"total": float(terms.total.detach()), "gradients": gradients | {"logits": logits.grad}}


def test_losses_and_gradients_of_all_processes_add_up_to_those_of_the_batch(two: Crew) -> None:
    whole, parts = losses(4, 3), two.results(losses, 4, 3)
    assert sum(part["total"] for part in parts) == pytest.approx(whole["total"], rel=1e-10)
    for name, gradient in whole["gradients"].items():
        found = torch.cat([part["gradients"][name] for part in parts])
        torch.testing.assert_close(found, gradient, **EXACT, msg=name)


class ToyTeacher(nn.Module):
    """Has a fuser and a head that `captured_maps` can watch."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion_layer, self.bbox_head = _Fuser(), _Head()

    def forward(self, batch: torch.Tensor) -> None:
        self.bbox_head(self.fusion_layer(batch, 2 * batch))


class _Fuser(nn.Module):
    def forward(self, camera: torch.Tensor, lidar: torch.Tensor) -> torch.Tensor:
        return camera + lidar


class _Head(nn.Module):
    def forward(self, bev: torch.Tensor) -> Any:
        return dataclasses.make_dataclass("Shown", ["dense_heatmap"])(bev - 3)


def distilled(batch: torch.Tensor, noise: torch.Tensor) -> float:
    ranks = Ranks.here()
    size = len(batch) // ranks.size
    mine = slice(ranks.rank * size, (ranks.rank + 1) * size)
    own = batch[mine]
    student = Maps(
        fuser=[torch.cat([own, 2 * own], dim=1)[:, :3] + noise[mine, :3]],
        head=[3 * own[:, :1] - noise[mine, :1]],
        heatmap=[3 * own - 3 + noise[mine, :2]],
    )
    teacher = Teacher(model=ToyTeacher(), fuser_channels=torch.arange(3), head_channels=torch.arange(1))  # type: ignore[arg-type]
    return float(teacher.loss(own, student, ranks))  # type: ignore[arg-type]


def test_distillation_adds_up_too(two: Crew) -> None:
    generator = torch.Generator().manual_seed(2)
    batch = torch.rand(4, 2, 3, 3, dtype=torch.float64, generator=generator) * torch.arange(1, 5)[:, None, None, None]
    noise = torch.randn(4, 4, 3, 3, dtype=torch.float64, generator=generator)
    assert sum(two.results(distilled, batch, noise)) == pytest.approx(distilled(batch, noise), rel=1e-10)


class Plain(nn.Module):
    """Without dropout, whose random numbers are each process's own."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(4)
            # No bias before a norm: its gradient is nothing but rounding, which Adam blows up.
            self.layers = nn.Sequential(nn.Linear(3, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))
            self.unused = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def shared_objective(model: nn.Module, samples: Sequence[Sample]) -> LossTerms:
    x = torch.from_numpy(np.concatenate([s.inputs["x"] for s in samples])).to(next(model.parameters()).dtype)
    ranks = Ranks.here()
    loss = (model(x)[:, 0].to(x.dtype) - x.sum(dim=1)).square().sum() / ranks.number(len(x), x.device)
    if samples[0].token.startswith("t6.") and BROKEN in samples[-1].token:
        loss = loss * float("nan")
    return LossTerms(total=loss, heatmap=loss, classes=loss, boxes=loss, matched=len(samples), overlap=0.25)


BROKEN = "none"

MASK = torch.arange(24).reshape(8, 3) % 2 == 0


def trained(folder: Path, recipe: TrainRecipe, compute: ComputeRecipe, killed_at: int = 0) -> dict[str, Any]:
    """Weights and log of a toy run; killed once at a step and resumed if asked for."""

    def kill(report: StepReport) -> None:
        if report.step == killed_at:
            raise KilledError

    options: dict[str, Any] = {"objective": shared_objective, "masks": {"layers.0.weight": MASK}, "compute": compute}
    double = compute.precision == "fp32"

    def model() -> Any:
        return Plain().double() if double else Plain()

    if killed_at:
        with pytest.raises(KilledError):
            train(model(), ToyData(), recipe, folder=folder, on_step=kill, **options)
    result = train(model(), ToyData(), recipe, folder=folder, **options)
    return {"weights": result.model.state_dict(), "log": read_log(result.log), "resumed": result.resumed_from}


SIX = dataclasses.replace(RECIPE, batch_size=6, grad_clip=0.5)


@pytest.mark.parametrize("parts", [1, 2])
def test_any_number_of_processes_trains_to_the_same_weights(two: Crew, three: Crew, tmp_path: Path, parts: int) -> None:
    recipe, compute = dataclasses.replace(SIX, batch_size=12), ComputeRecipe(accumulate=parts)
    alone = trained(tmp_path / "1", recipe, compute)
    for crew in (two, three):
        for found in crew.results(trained, tmp_path / f"{crew.size}", recipe, compute):
            assert torch.equal(found["weights"]["unused.weight"], Plain().double().unused.weight)
            for name, weight in alone["weights"].items():
                torch.testing.assert_close(found["weights"][name], weight, **EXACT, msg=name)
            # Written by one of them alone, with the figures of all.
            assert [line["step"] for line in found["log"]] == list(range(12))
            for line, wanted in zip(found["log"], alone["log"], strict=True):
                assert {k: v for k, v in line.items() if k != "seconds"} == pytest.approx(
                    {k: v for k, v in wanted.items() if k != "seconds"}, rel=1e-9
                )
    assert alone["log"][3]["matched"] == 12
    assert alone["log"][3]["overlap"] == pytest.approx(0.25)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_resume_is_bit_identical_in_every_process(three: Crew, tmp_path: Path, precision: Any) -> None:
    compute = ComputeRecipe(accumulate=2, precision=precision)
    whole = three.results(trained, tmp_path / "whole", SIX, compute)
    cut = three.results(trained, tmp_path / "cut", SIX, compute, 8)
    assert {found["resumed"] for found in cut} == {5}
    for found in cut:
        assert all(torch.equal(found["weights"][k], v) for k, v in whole[0]["weights"].items())
    assert [{k: v for k, v in line.items() if k != "seconds"} for line in whole[0]["log"]] == [
        {k: v for k, v in line.items() if k != "seconds"} for line in cut[0]["log"]
    ]


def disagreeing(folder: Path) -> None:
    trained(folder, dataclasses.replace(SIX, lr=1e-2 * (1 + Ranks.here().rank)), ComputeRecipe())


def of_another_folder(folder: Path) -> None:
    trained(folder / str(Ranks.here().rank), SIX, ComputeRecipe())


def broken_in_one(folder: Path) -> None:
    global BROKEN  # noqa: PLW0603 - of this process of the crew
    BROKEN = "t6.5" if Ranks.here().rank == 1 else "none"
    try:
        trained(folder, SIX, ComputeRecipe())
    finally:
        BROKEN = "none"


def test_processes_that_disagree_all_say_so(two: Crew, tmp_path: Path) -> None:
    for error in two.call(disagreeing, tmp_path / "a"):
        assert "do not agree on recipe, data or initial weights" in str(error)
    two.results(trained, tmp_path / "b" / "0", SIX, ComputeRecipe())
    for error in two.call(of_another_folder, tmp_path / "b"):
        assert "do not agree on the steps done before: 12 (process 0), 0 (process 1)" in str(error)


def test_a_loss_that_is_not_finite_in_one_process_ends_all(two: Crew, tmp_path: Path) -> None:
    for error in two.call(broken_in_one, tmp_path):
        assert "step 6: total = nan" in str(error)
        assert "t6.0, t6.1, t6.2, t6.3, t6.4, t6.5" in str(error)
    # What was saved before is sound.
    assert {found["resumed"] for found in two.results(trained, tmp_path, SIX, ComputeRecipe())} == {5}


def in_double(model: Any, samples: Sequence[Sample]) -> LossTerms:
    """The detection loss in double precision, where rounding hides nothing."""
    geometry = model.config.geometry
    batch = collate([sample.inputs for sample in samples], geometry)
    wide = {k: v.double() if v.is_floating_point() else v for k, v in batch.tensors.items()}
    outputs = model(FrameBatch(tensors=wide, size=batch.size))
    return detection_loss(outputs, [sample.truth for sample in samples], geometry, ranks=Ranks.here())


def real_step(folder: Path) -> dict[str, torch.Tensor]:
    """Gradients and statistics of the real detector after one step with two frames."""
    recipe = TrainRecipe(steps=1, batch_size=2, grad_clip=1e9)
    model = train(preset().double(), Frames(), recipe, folder=folder, objective=in_double).model
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return gradients | {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}


def test_the_real_detector_has_the_gradients_of_the_whole_batch(two: Crew, tmp_path: Path) -> None:
    alone = real_step(tmp_path / "alone")
    for found in two.results(real_step, tmp_path / "two"):
        assert found.keys() == alone.keys()
        for name, wanted in alone.items():
            # The norm of the map's own positions sees them once in each process: n / (n - 1) of the variance differs.
            rtol = 2e-4 if name.endswith("cross_posembed.position_embedding_head.1.running_var") else 1e-7
            torch.testing.assert_close(found[name], wanted, atol=1e-9, rtol=rtol, msg=name)


def test_shares_of_a_batch() -> None:
    assert shares(4, ALONE, 1) == [[0, 1, 2, 3]]
    assert shares(8, Ranks(rank=1, size=2), 2) == [[2, 3], [6, 7]]
    for size, ranks, parts in ((3, 2, 1), (2, 1, 4), (4, 2, 4)):
        with pytest.raises(RecipeError, match=f"batch_size = {size}") as caught:
            shares(size, Ranks(rank=0, size=ranks), parts)
        assert str(ranks * parts) in caught.value.expected


def test_batch_norm_in_eval_mode_is_left_alone() -> None:
    x = torch.randn(5, 3)
    with SyncedNorms():
        assert torch.equal(
            nn.BatchNorm1d(3).eval()(x), F.batch_norm(x, torch.zeros(3), torch.ones(3), torch.ones(3), torch.zeros(3))
        )
