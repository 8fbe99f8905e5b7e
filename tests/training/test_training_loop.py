"""The loop on a toy model: what is tested is order, resume, averaging and errors, not accuracy."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from altermoma.data.dataset import Sample
from altermoma.errors import AltermomaError, CheckpointError, DataError, RecipeError, StorageError
from altermoma.frames import Boxes
from altermoma.recipe import TrainRecipe
from altermoma.training.log import LOG_FILE, read_log
from altermoma.training.loop import StepReport, TrainResult, train
from altermoma.training.losses import LossTerms
from altermoma.training.schedule import build_optimiser, first_beta, learning_rate
from altermoma.training.state import STATE_FILE, AveragedWeights

RECIPE = TrainRecipe(steps=12, batch_size=2, lr=1e-2, checkpoint_every=5, ema_decay=0.9, schedule="one-cycle")


class Toy(nn.Module):
    """Norm with running statistics and dropout: all that has hidden state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class ToyData:
    def __init__(self, broken_step: int = -1) -> None:
        self.broken_step = broken_step

    tokens = tuple("abcdefg")

    def __len__(self) -> int:
        return 7

    def batch(self, step: int, *, batch_size: int, seed: int, positions: Sequence[int] | None = None) -> list[Sample]:
        if step == self.broken_step:
            raise DataError("frame t is truncated")
        rng = np.random.default_rng([seed, step])
        samples = [
            Sample(inputs={"x": rng.normal(size=(4, 3)).astype(np.float32)}, truth=Boxes.empty(), token=f"t{step}.{i}")
            for i in range(batch_size)
        ]
        return samples if positions is None else [samples[i] for i in positions]


def objective(model: nn.Module, samples: Sequence[Sample]) -> LossTerms:
    x = torch.from_numpy(np.concatenate([s.inputs["x"] for s in samples]))
    loss = (model(x)[:, 0] - x.sum(dim=1)).square().mean()
    return LossTerms(total=loss, heatmap=loss, classes=loss, boxes=loss, matched=0, overlap=0.0)


def toy() -> Toy:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return Toy()


def run(folder: Path, recipe: TrainRecipe = RECIPE, **options: object) -> TrainResult:
    return train(toy(), ToyData(), recipe, folder=folder, **({"objective": objective} | options))


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
@pytest.mark.parametrize("killed_at", [1, 5, 8, 12])
def test_resume_is_bit_identical(tmp_path: Path, killed_at: int, ema_decay: float) -> None:
    recipe = dataclasses.replace(RECIPE, ema_decay=ema_decay)
    whole = run(tmp_path / "whole", recipe)

    def kill(report: StepReport) -> None:
        if report.step == killed_at:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path / "cut", recipe, on_step=kill)
    torch.rand(3)  # the caller's random state is of no concern
    resumed = run(tmp_path / "cut", recipe)
    assert resumed.resumed_from == (12 if killed_at == 12 else killed_at // 5 * 5)
    assert same(whole.model, resumed.model)
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in read_log(r.log)] for r in (whole, resumed)]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == list(range(12))


def test_a_process_killed_outright_resumes_to_the_same_weights(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    recipe = dataclasses.replace(RECIPE, steps=120, checkpoint_every=3)
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_training_loop import run
from altermoma.recipe import TrainRecipe
run(Path({str(tmp_path / "cut")!r}), TrainRecipe(**{dataclasses.asdict(recipe)!r}))
"""
    log = tmp_path / "cut" / LOG_FILE
    with subprocess.Popen([sys.executable, "-c", script], env=os.environ | {"OMP_NUM_THREADS": "1"}) as process:
        deadline = time.monotonic() + 60
        while len(read_log(log)) < 20 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    # Sums over several threads differ in the last bit from sums over one.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    resumed = run(tmp_path / "cut", recipe)
    assert 0 < resumed.resumed_from < 120
    assert same(resumed.model, run(tmp_path / "whole", recipe).model)
    assert len(read_log(log)) == 120


def test_the_caller_s_random_state_is_untouched(tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    run(tmp_path)
    assert torch.equal(torch.rand(2), expected)


def test_nor_is_it_when_a_run_is_interrupted(tmp_path: Path) -> None:
    def kill(_: StepReport) -> None:
        raise KilledError

    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)
    with pytest.raises(KilledError):
        run(tmp_path, on_step=kill)
    assert torch.equal(torch.rand(2), expected)


def test_another_run_s_state_is_refused(tmp_path: Path) -> None:
    run(tmp_path)
    with pytest.raises(CheckpointError, match="another run"):
        run(tmp_path, dataclasses.replace(RECIPE, lr=2e-2))
    with pytest.raises(CheckpointError, match="another run"):
        train(Toy(), ToyData(), RECIPE, folder=tmp_path, objective=objective)
    assert run(tmp_path, dataclasses.replace(RECIPE, checkpoint_every=1)).resumed_from == 12


def test_the_same_tokens_of_other_data_are_another_run(tmp_path: Path) -> None:
    run(tmp_path / "bare")
    assert run(tmp_path / "bare", data={}).resumed_from == 12
    run(tmp_path / "told", data={"sweeps": 3})
    assert run(tmp_path / "told", data={"sweeps": 3}).resumed_from == 12
    for data in ({"sweeps": 5}, None):
        with pytest.raises(CheckpointError, match="another run"):
            run(tmp_path / "told", data=data)


@pytest.mark.parametrize("content", [b"", b"not a state", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_corrupt_state_is_an_error_that_says_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match="delete it"):
        run(tmp_path)


def test_a_cut_log_line_is_dropped(tmp_path: Path) -> None:
    def kill(report: StepReport) -> None:
        if report.step == 7:
            raise KilledError

    with pytest.raises(KilledError):
        run(tmp_path, on_step=kill)
    with (tmp_path / LOG_FILE).open("a") as stream:
        stream.write('{"step": 7, "tot')
    assert [line["step"] for line in read_log(run(tmp_path).log)] == list(range(12))


def test_a_loss_that_is_not_finite_stops_with_advice(tmp_path: Path) -> None:
    def broken(model: nn.Module, samples: Sequence[Sample]) -> LossTerms:
        terms = objective(model, samples)
        bad = samples[0].token == "t6.0"
        return dataclasses.replace(terms, boxes=terms.boxes * float("nan") if bad else terms.boxes)

    with pytest.raises(AltermomaError, match=r"step 6: boxes = nan on frames t6\.0, t6\.1") as caught:
        run(tmp_path, objective=broken)
    assert "learning rate (0.01)" in caught.value.remedy
    # The state before the accident is intact.
    assert run(tmp_path).resumed_from == 5


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_spoilt(tmp_path: Path) -> None:
    def broken(model: nn.Module, samples: Sequence[Sample]) -> LossTerms:
        terms = objective(model, samples)
        return dataclasses.replace(terms, total=terms.total + (next(model.parameters()).sum() * 0).sqrt())

    model = toy()
    with pytest.raises(AltermomaError, match="gradient norm"):
        train(model, ToyData(), RECIPE, folder=tmp_path, objective=broken)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_errors_of_the_data_reach_the_caller(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="truncated"):
        train(toy(), ToyData(broken_step=4), RECIPE, folder=tmp_path, objective=objective)


@pytest.mark.parametrize(
    "change", [{"batch_size": 0}, {"lr": 0.0}, {"ema_decay": 1.0}, {"checkpoint_every": 0}, {"grad_clip": -1.0}]
)
def test_impossible_recipes_are_refused(tmp_path: Path, change: dict[str, float]) -> None:
    with pytest.raises(RecipeError, match=next(iter(change))):
        run(tmp_path, dataclasses.replace(RECIPE, **change))


def test_no_steps_change_nothing(tmp_path: Path) -> None:
    assert same(run(tmp_path, dataclasses.replace(RECIPE, steps=0)).model, toy())


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        run(tmp_path / "file" / "below")


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    model = toy()
    first = model.layers[0]
    first.weight.requires_grad_(False)
    before = first.weight.clone()
    train(model, ToyData(), RECIPE, folder=tmp_path, objective=objective)
    assert torch.equal(first.weight, before)
    assert not torch.equal(first.bias, toy().layers[0].bias)


def test_training_learns_and_returns_eval_mode(tmp_path: Path) -> None:
    result = run(tmp_path, dataclasses.replace(RECIPE, steps=150, lr=3e-2, ema_decay=0.0))
    losses = [line["total"] for line in read_log(result.log)]
    assert np.mean(losses[-15:]) < 0.5 * np.mean(losses[:15])
    assert not result.model.training


def test_one_adamw_step_by_hand(tmp_path: Path) -> None:
    recipe = TrainRecipe(steps=1, lr=0.1, weight_decay=0.5, warmup_share=0.0, grad_clip=1e9)
    model = toy()
    torch.manual_seed(0)

    def linear(model: nn.Module, samples: Sequence[Sample]) -> LossTerms:
        loss = sum((p * (i + 1)).sum() for i, p in enumerate(model.parameters()))
        return LossTerms(total=loss, heatmap=loss, classes=loss, boxes=loss, matched=0, overlap=0.0)

    trained = train(model, ToyData(), recipe, folder=tmp_path, objective=linear).model
    for (name, before), after in zip(toy().named_parameters(), trained.parameters(), strict=True):
        decay = 0.5 if before.ndim > 1 else 0.0
        # First step of Adam: the sign of the gradient times the rate.
        torch.testing.assert_close(after, before * (1 - 0.1 * decay) - 0.1, msg=name, atol=1e-6, rtol=1e-5)


def test_averaged_weights_against_a_float64_recursion() -> None:
    model = toy()
    averaged = AveragedWeights.of(model, 0.5)
    expected = model.layers[0].weight.detach().double()
    for step in range(20):
        with torch.no_grad():
            model.layers[0].weight.add_(0.1 * step)
            model.layers[1].num_batches_tracked.add_(1)
        averaged.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model.layers[0].weight.detach().double()
    torch.testing.assert_close(averaged.tensors["layers.0.weight"].double(), expected, atol=1e-5, rtol=1e-5)
    assert averaged.tensors["layers.1.num_batches_tracked"] == 20


def test_a_state_of_other_frames_is_refused(tmp_path: Path) -> None:
    run(tmp_path, RECIPE)
    other = ToyData()
    other.tokens = tuple("hijklmn")
    with pytest.raises(CheckpointError, match="another run"):
        train(toy(), other, RECIPE, folder=tmp_path, objective=objective)


def test_learning_rates() -> None:
    recipe = TrainRecipe(steps=100, lr=1.0, warmup_share=0.1, schedule="cosine")
    rates = [learning_rate(step, recipe) for step in range(100)]
    assert rates[0] == pytest.approx(0.19)
    assert rates[9] == rates[10] == pytest.approx(1.0)
    assert rates[99] == pytest.approx(0.01)
    middle = 0.01 + 0.99 * (1 + np.cos(np.pi * 45 / 89)) / 2
    assert rates[55] == pytest.approx(middle)
    cycle = dataclasses.replace(recipe, schedule="one-cycle")
    assert max(learning_rate(step, cycle) for step in range(100)) == pytest.approx(1.0)
    assert learning_rate(99, cycle) == pytest.approx(1e-3)
    assert first_beta(9, cycle) == pytest.approx(0.85)
    assert first_beta(99, cycle) == pytest.approx(0.95)
    assert first_beta(50, recipe) == 0.9
    assert learning_rate(0, TrainRecipe(steps=1, lr=1.0, schedule="cosine")) == pytest.approx(1.0)


def test_norms_and_biases_are_not_decayed() -> None:
    groups = build_optimiser(toy().named_parameters(), RECIPE).param_groups
    assert [{p.ndim for p in group["params"]} for group in groups] == [{2}, {1}]
    assert [group["weight_decay"] for group in groups] == [RECIPE.weight_decay, 0.0]


def test_the_log_holds_figures(tmp_path: Path) -> None:
    line = json.loads(run(tmp_path).log.read_text().splitlines()[3])
    assert line.keys() >= {"step", "total", "heatmap", "classes", "boxes", "lr", "grad_norm", "seconds"}
