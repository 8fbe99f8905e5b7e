"""The device that was asked for, and models that stay on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from small_bevfusion import SMALL_SWIN, small_model
from synthetic_inputs import random_inputs
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from altermoma.errors import RecipeError
from altermoma.models.batch import collate
from altermoma.models.config import ModelConfig
from altermoma.models.devices import allow_tf32, choose_device, describe_device, device_of
from altermoma.models.presets import build, config_of
from altermoma.recipe import ComputeRecipe, Recipe
from altermoma.workflow.place import Workplace

TINY = config_of("bevfusion-tiny")
TINY_SWIN = dataclasses.replace(TINY, backbone=SMALL_SWIN.backbone)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    current: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Test GPU")
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    allow_tf32(True)
    yield current
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu() -> None:
    assert choose_device("cpu") == choose_device("auto") == torch.device("cpu")
    assert describe_device(torch.device("cpu")).startswith("cpu, ")
    with pytest.raises(RecipeError, match="cuda") as caught:
        choose_device("cuda")
    assert caught.value.exit_code == 2
    assert "auto" in caught.value.remedy


@pytest.mark.usefixtures("no_gpu")
def test_a_gpu_that_is_not_there_is_said_before_any_work() -> None:
    with pytest.raises(RecipeError, match="device cuda"):
        Workplace(Recipe(compute=ComputeRecipe(device="cuda")))


def test_with_gpus(two_gpus: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    assert choose_device("auto") == torch.device("cuda:0")
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert choose_device("cuda") == torch.device("cuda:1") == two_gpus[-1]
    assert describe_device(choose_device("cuda")) == "cuda:1, Test GPU"
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RecipeError, match="process 2") as caught:
        choose_device("cuda")
    assert "--nproc-per-node 2" in caught.value.remedy


class OneDevice(TorchDispatchMode):
    """Refuses every operation of tensors on two devices, as a GPU would; a number of the host may go with any."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        places = {tensor.device.type for tensor in given if tensor.ndim > 0}
        if len(places) > 1:
            raise RuntimeError(f"{func} of tensors on {places}")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("masked", ["none", "camera", "lidar"])
@pytest.mark.parametrize("config", [TINY, TINY_SWIN, config_of("bevfusion-tiny-pillars")])
def test_a_pass_and_its_gradients_stay_on_the_device(config: ModelConfig, masked: str) -> None:
    """Shapes alone, on torch's device for them, which stands for a GPU: nothing is made on the host meanwhile."""
    model = small_model(config).to("meta")
    batch = collate([random_inputs(config.geometry)] * 2, config.geometry).to("meta")
    with OneDevice():
        outputs = model(batch, masked=masked)
        sum(value.sum() for value in vars(outputs).values() if value.is_floating_point()).backward()
    assert {value.device.type for value in vars(outputs).values()} == {"meta"}
    found = {p.grad.device.type for p in model.parameters() if p.grad is not None}
    assert found == {"meta"} == {device_of(model).type}


def test_what_a_gpu_would_refuse_is_refused() -> None:
    with OneDevice(), pytest.raises(RuntimeError, match="mm"):
        torch.empty(2, 2, device="meta") @ torch.empty(2, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
@pytest.mark.parametrize("name", ["bevfusion-tiny", "bevfusion-tiny-pillars"])
def test_a_gpu_gives_what_the_cpu_gives(name: str) -> None:
    torch.manual_seed(0)
    model = build(name).eval()
    batch = collate([random_inputs(model.config.geometry)], model.config.geometry)
    with torch.inference_mode():
        wanted = model(batch)
        device = choose_device("cuda")
        found = model.to(device)(batch.to(device))
    for key, value in vars(wanted).items():
        if key == "query_labels":
            continue
        np.testing.assert_allclose(vars(found)[key].cpu().numpy(), value.numpy(), atol=1e-3, rtol=1e-3, err_msg=key)


def test_models_go_to_the_recipe_s_device_unless_they_are_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[object] = []
    plain = nn.Module.to

    def to(self: nn.Module, device: object) -> nn.Module:
        moved.append(device)
        return plain(self, device)  # type: ignore[arg-type]

    monkeypatch.setattr(nn.Module, "to", to)
    place = Workplace(dataclasses.replace(Recipe(), compute=ComputeRecipe(device="cpu")))
    place.model_on_host(place.checkpoint)
    assert not moved
    place.dense_model()
    assert moved == [place.device]
