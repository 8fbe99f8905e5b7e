"""2:4 masks against loops, the rules on widths, and checkpoints whose claim is not true."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from fusion_toys import BASIC, fusion_model
from torch import Tensor, nn

from altermoma.checkpoints.io import bundled_checkpoint, load_checkpoint, model_from_checkpoint, save_checkpoint
from altermoma.errors import CheckpointError, PruningError
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import PRESETS
from altermoma.pruning.two_four import (
    best_two,
    claim,
    claimed_masks,
    holds,
    kept_magnitude,
    two_four_masks,
    weights_of,
)
from altermoma.pruning.two_four_rules import FULL_PRECISION, GROUPED, LOOKED_UP, TRANSPOSED, too_narrow
from altermoma.pruning.unstructured import apply_masks


@pytest.fixture(scope="module")
def tiny() -> FusionModel:
    return model_from_checkpoint(bundled_checkpoint("bevfusion-tiny"))


def by_hand(weight: np.ndarray, dim: int) -> np.ndarray:
    """The two largest of each four, one four at a time."""
    rows = np.moveaxis(weight, dim, -1)
    mask = np.zeros(rows.shape, bool)
    for place in np.ndindex(rows.shape[:-1]):
        for first in range(0, rows.shape[-1], 4):
            sizes = np.abs(rows[place][first : first + 4])
            for index in sorted(range(4), key=lambda i: -sizes[i])[:2]:
                mask[(*place, first + index)] = True
    return np.moveaxis(mask, -1, dim)


@pytest.mark.parametrize(("shape", "dim"), [((6, 8, 3, 3), 1), ((5, 12), 1), ((4, 3, 3, 3, 8), 4), ((8, 3, 2), 0)])
def test_masks_against_loops(shape: tuple[int, ...], dim: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    mask = best_two(weight.abs(), dim)
    np.testing.assert_array_equal(mask.numpy(), by_hand(weight.numpy(), dim))
    assert holds(weight * mask, dim)
    assert not holds(weight, dim)


def test_equals_and_zeros_leave_exactly_two() -> None:
    assert best_two(torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 2.0]]), 1).tolist() == [
        [True, True, False, False, True, False, False, True]
    ]
    with pytest.raises(PruningError, match="6 input channels"):
        best_two(torch.ones(2, 6), 1)
    assert not holds(torch.zeros(2, 6), 1)


@pytest.mark.parametrize(
    ("rule", "sizes", "found"),
    [
        ("pattern", {"inputs": 12, "outputs": 3}, ""),
        ("pattern", {"inputs": 6, "outputs": 8}, "6 inputs are no multiple of 4"),
        ("aligned", {"inputs": 12, "outputs": 8}, "12 inputs and 8 outputs are no multiples of 16 and 8"),
        ("aligned", {"inputs": 16, "outputs": 10}, "16 inputs and 10 outputs are no multiples of 16 and 8"),
        ("aligned", {"inputs": 16, "outputs": 8}, ""),
        ("wide", {"inputs": 48, "outputs": 8, "positions": 9}, "432 products per output, fewer than 512"),
        ("wide", {"inputs": 64, "outputs": 8, "positions": 9}, ""),
        ("wide", {"inputs": 2048, "outputs": 512}, "2048 products per output, fewer than 4096"),
    ],
)
def test_widths(rule: str, sizes: dict[str, int], found: str) -> None:
    assert too_narrow(rule, **sizes) == found  # type: ignore[arg-type]


def test_what_stays_dense(tiny: FusionModel) -> None:
    found = {weight.name: weight for weight in weights_of(tiny, "aligned")}
    assert found["bbox_head.prediction_heads.0.center.1.weight"].obstacle == FULL_PRECISION
    assert found["bbox_head.decoder.0.self_posembed.position_embedding_head.3.weight"].obstacle == FULL_PRECISION
    assert found["pts_middle_encoder.conv_input.0.weight"].obstacle == FULL_PRECISION
    assert found["pts_neck.deblocks.1.0.weight"].obstacle == TRANSPOSED
    assert found["bbox_head.class_encoding.weight"].obstacle == LOOKED_UP
    assert found["img_backbone.conv1.weight"].obstacle == "3 inputs are no multiple of 4"
    for name in (
        "bbox_head.decoder.0.cross_attn.attn.in_proj_weight",
        "bbox_head.decoder.0.ffn.layers.1.weight",
        "pts_middle_encoder.conv_out.0.weight",
        "pts_middle_encoder.encoder_layers.encoder_layer1.0.conv1.weight",
        "view_transform.depthnet.6.weight",
    ):
        assert not found[name].obstacle, name
    grouped = nn.Sequential(nn.Conv2d(16, 16, 3, groups=4))
    assert weights_of(grouped, "pattern")[0].obstacle == GROUPED


@pytest.mark.parametrize("preset", PRESETS)
def test_every_product_is_listed(preset: str) -> None:
    """No weight that is multiplied is forgotten: all parameters of two or more dimensions but look-up tables."""
    with torch.device("meta"):
        model = FusionModel(PRESETS[preset])
    listed = {weight.name for weight in weights_of(model, "pattern")}
    products = {name for name, tensor in model.named_parameters() if tensor.ndim > 1}
    assert {name for name in products - listed if not name.endswith("relative_position_bias_table")} == set()


def test_masked_model(tiny: FusionModel) -> None:
    model = FusionModel(tiny.config)
    model.load_state_dict(tiny.state_dict())
    masks = two_four_masks(model, "aligned")
    share = kept_magnitude(model, masks)
    assert 0.7 < share < 0.8, "two of four Gaussian numbers hold 0.745 of their magnitude"
    apply_masks(model, masks)
    zeros = [float((model.get_parameter(name) == 0).double().mean()) for name in masks]
    assert min(zeros) == pytest.approx(0.5)
    assert kept_magnitude(model, masks) == 1.0


def test_scores_decide_in_place_of_magnitude() -> None:
    model = fusion_model(BASIC)
    name = "fusion_layer.0.weight"
    shape = model.get_parameter(name).shape
    scores = torch.arange(shape[1]).expand(shape[0], shape[2], shape[3], -1).movedim(-1, 1).double()
    mask = two_four_masks(model, "aligned", {name: scores - 1e3, "no.such": scores})[name]
    assert mask[3, :8, 1, 2].tolist() == [False, False, True, True] * 2


def test_nothing_wide_enough() -> None:
    with pytest.raises(PruningError, match="no weight takes 2:4 under the rule 'wide'"):
        two_four_masks(nn.Sequential(nn.Conv2d(16, 16, 3)), "wide")


def saved(tmp_path: Path, model: FusionModel, sparsity: object, spoil: str = "") -> Path:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if spoil:
        state[spoil].fill_(0.5)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, state, {"preset": "bevfusion-tiny", "sparsity": sparsity})
    return path


def test_claim_of_a_checkpoint(tmp_path: Path, tiny: FusionModel) -> None:
    model = model_from_checkpoint(bundled_checkpoint("bevfusion-tiny"))
    masks = two_four_masks(model, "aligned")
    apply_masks(model, masks)
    record = claim(model, masks, "aligned")
    state, metadata = load_checkpoint(saved(tmp_path, model, record))
    found = claimed_masks(state, metadata["sparsity"], "it")
    assert found.keys() == masks.keys()
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    assert claimed_masks(tiny.state_dict(), None, "it") == {}
    name = "fusion_layer.0.weight"
    with pytest.raises(CheckpointError, match=rf"model\.safetensors says that {name} is 2:4, but it is not"):
        model_from_checkpoint(saved(tmp_path, model, record, spoil=name))
    for broken in (
        {**record, "pattern": "1:4"},
        {**record, "rule": "any"},
        {**record, "weights": [name]},
        "2:4",
    ):
        with pytest.raises(CheckpointError, match="has a sparsity that this version does not know"):
            model_from_checkpoint(saved(tmp_path, model, broken))
    for weights in ({name: 0}, {name: 7}, {name: "1"}, {"no.such.weight": 1}):
        with pytest.raises(CheckpointError, match="is 2:4, but it is not"):
            model_from_checkpoint(saved(tmp_path, model, {**record, "weights": weights}))


def test_every_pattern_of_two_holds() -> None:
    for kept in itertools.product([0.0, 1.0], repeat=4):
        weight: Tensor = torch.tensor([list(kept)])
        assert holds(weight, 1) == (sum(kept) <= 2)
