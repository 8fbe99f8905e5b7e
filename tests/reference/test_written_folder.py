"""Against mmdet3d itself: its model of our folder gives what ours gives, and its own checkpoint loads into the preset.

Runs where mmdet3d and spconv are installed and ALTERMOMA_MMDET3D names an mmdetection3d checkout: docs/reference.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_bevfusion import SMALL_SWIN, pruned_model, small_model
from written_folder import build_mmdet3d, random_sample, stages, train_on_cpu

from altermoma.checkpoints.convert import load_foreign
from altermoma.checkpoints.mmdet3d.read_config import read_file
from altermoma.checkpoints.mmdet3d.write import write_mmdet3d
from altermoma.models.presets import PRESETS

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]
OFFICIAL = "projects/BEVFusion/configs/bevfusion_lidar-cam_voxel0075_second_secfpn_8xb4-cyclic-20e_nus-3d.py"
MODELS = {
    "dense": small_model,
    "pruned": pruned_model,
    "dense Swin": lambda: small_model(SMALL_SWIN),
    "pruned Swin": lambda: pruned_model(SMALL_SWIN),
}


@pytest.mark.parametrize("kind", MODELS)
def test_mmdet3d_computes_what_we_compute_from_a_written_folder(kind: str, checkout: Path, tmp_path: Path) -> None:
    model = MODELS[kind]()
    write_mmdet3d(model, tmp_path, sweeps=10)
    compared = 0
    for stage, own, other in stages(model, build_mmdet3d(tmp_path)):
        scale = float(other.abs().max())
        assert scale > 0, stage
        assert float((own - other).abs().max()) <= 1e-5 * scale, stage
        compared += 1
    assert compared == 18


@pytest.mark.parametrize("kind", ["pruned", "pruned Swin"])
def test_mmdet3d_trains_a_written_folder(
    kind: str, checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, a gradient for every parameter that is trained, and pipelines that can be built."""
    train_on_cpu(monkeypatch)
    from mmdet3d.registry import TRANSFORMS
    from mmengine.config import Config

    model = MODELS[kind]()
    write_mmdet3d(model, tmp_path, sweeps=10)
    theirs = build_mmdet3d(tmp_path).train()
    image = model.config.geometry.image
    losses = theirs.loss(*random_sample(theirs, (image.height, image.width)))
    theirs.parse_losses(losses)[0].backward()
    trained = {name: parameter for name, parameter in theirs.named_parameters() if parameter.requires_grad}
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []
    assert {name: p.shape for name, p in trained.items()} == {name: p.shape for name, p in model.named_parameters()}
    for pipeline in ("train_pipeline", "test_pipeline"):
        for step in Config.fromfile(tmp_path / "config.py", import_custom_modules=False)[pipeline]:
            TRANSFORMS.build(step)


def test_the_official_configuration_and_its_checkpoint_are_the_preset(checkout: Path, tmp_path: Path) -> None:
    adapted = read_file(checkout / OFFICIAL)
    assert adapted.model == PRESETS["bevfusion-mit-swint-voxelnet"]
    assert (adapted.pruned, adapted.sweeps) == (False, 10)
    theirs = _official_model(checkout / OFFICIAL)
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "epoch_6.pth")
    loaded = load_foreign(tmp_path / "epoch_6.pth", adapted.model, name="it")
    assert len(loaded.set_aside) == 4
    named = dict(theirs.state_dict())
    assert all(torch.equal(named[name], tensor) for name, tensor in loaded.model.state_dict().items())


def _official_model(path: Path) -> Any:
    from mmdet3d.registry import MODELS as REGISTRY
    from mmengine.config import Config

    config = Config.fromfile(path)
    config.model.img_backbone.init_cfg = None  # would download weights
    return REGISTRY.build(config.model)


def test_a_checkpoint_of_a_runner_is_read(checkout: Path, tmp_path: Path) -> None:
    """As mmengine writes it: with its log, which torch alone refuses to read."""
    import numpy as np
    from mmengine.logging import MessageHub

    hub = MessageHub.get_instance("altermoma-test")
    hub.update_scalar("train/loss", np.float64(1.5))
    hub.update_info("iter", np.int64(3))
    model = small_model()
    path = tmp_path / "iter_3.pth"
    state = {"meta": {"iter": 3}, "state_dict": model.state_dict(), "message_hub": hub.state_dict()}
    torch.save(state, path)
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch.load(path, weights_only=True)
    found = load_foreign(path, model.config, name="it").model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
