"""What AlterMOMA's scoring costs, counted: passes through the network, and memory beside the model."""

from __future__ import annotations

import dataclasses
import weakref
from typing import Any

import pytest
import torch
from branch_toys import toy_batches, toy_loss, toy_model
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from altermoma.pruning.channels import ChannelGroup, Slice
from altermoma.pruning.indicators import ChannelTerms
from altermoma.pruning.methods.choose import scores_of
from altermoma.pruning.methods.scoring import Scoring
from altermoma.pruning.methods.work import weight_work
from altermoma.pruning.one_round import passes_of
from altermoma.recipe import PruneRecipe

LEAN = PruneRecipe(amount=0.5, score_rounds=1, score_batches=2, reactivation_batches=6, reri_batches=1)


@pytest.mark.parametrize(
    "recipe",
    [
        LEAN,
        dataclasses.replace(LEAN, reri_batches=3),
        dataclasses.replace(LEAN, reactivation_batches=1),
        dataclasses.replace(LEAN, score_rounds=4),
    ],
)
def test_passes(recipe: PruneRecipe) -> None:
    model, calls = toy_model(), []

    def counted(*given: Any) -> Tensor:
        calls.append(given[-1])
        return toy_loss(*given)

    batches = toy_batches(max(recipe.score_batches, recipe.reactivation_batches))
    scores_of(weight_work(model, batches, recipe, counted))
    assert len(calls) == passes_of(recipe)


def test_the_lean_recipe_keeps_the_promise() -> None:
    """At most 2 B + 4 forward and backward passes."""
    for count in (1, 2, 8, 32):
        recipe = dataclasses.replace(LEAN, reactivation_batches=count)
        assert passes_of(recipe) <= 2 * count + 4


class _Wide(nn.Module):
    """Few activations, many parameters: what scoring needs beside the model is then copies of its parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.cam = nn.Linear(256, 256, bias=False)
        self.lid = nn.Linear(256, 256, bias=False)
        self.head = nn.Linear(512, 1, bias=False)

    def forward(self, x: Tensor, masked: str) -> Tensor:
        camera, lidar = self.cam(x), self.lid(x)
        camera = torch.zeros_like(camera) if masked == "camera" else camera
        lidar = torch.zeros_like(lidar) if masked == "lidar" else lidar
        return self.head(torch.cat([camera, lidar], dim=1).tanh()).square().mean()


class _LiveBytes(TorchDispatchMode):
    """The largest number of bytes in tensors that operations inside made and that still lived."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self._live:
                    self._live[key] = storage.nbytes()
                    weakref.finalize(storage, self._live.pop, key, None)
        self.peak = max(self.peak, sum(self._live.values()))
        return found


def test_memory() -> None:
    """Three times the parameters, a copy of them and two gradients; and what is computed of one tensor at a time."""
    torch.manual_seed(0)
    model = _Wide()
    groups = tuple(
        ChannelGroup(
            name=name,
            partition=partition,  # type: ignore[arg-type]
            width=256,
            members=(
                Slice(tensor=f"{name}.weight", dim=0, produces=True),
                Slice(tensor="head.weight", dim=1, offset=offset, produces=False),
            ),
        )
        for name, partition, offset in (("cam", "camera", 0), ("lid", "lidar", 256))
    )
    batches = [(torch.randn(2, 256), None) for _ in range(6)]

    def loss(model: Any, batch: Any, _truths: Any, masked: Any) -> Tensor:
        found: Tensor = model(batch, masked)
        return found

    work = Scoring(
        model=model,
        terms=ChannelTerms(model, groups, "channel"),
        batches=batches,
        loss_fn=loss,
        recipe=LEAN,
        cut=lambda *_: {},
    )
    scores_of(work)  # what is allocated once
    with _LiveBytes() as live:
        scores_of(work)
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())
    largest = max(p.numel() * p.element_size() for p in model.parameters())
    assert 2 * parameters < live.peak <= 3 * parameters + 2.1 * largest
