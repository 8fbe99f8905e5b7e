"""The channel-group table: mask equivalence on every model, an independent tracer, and tables that do not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from fusion_toys import BASIC, BOTTLENECK, SWIN, frame_batch, fusion_model, outputs_of, scaled_down
from torch import Tensor, nn

from altermoma.errors import PruningError
from altermoma.models.batch import FrameBatch
from altermoma.models.config import ModelConfig
from altermoma.models.fusion import FusionModel
from altermoma.models.presets import PRESETS
from altermoma.pruning.channels import ChannelGroup, Slice, check_groups, check_keep, select_groups
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.surgery import mask, shrink

CONFIGS = {
    "basic": BASIC,
    "bottleneck": BOTTLENECK,
    "swin": SWIN,
    **{name: scaled_down(config) for name, config in PRESETS.items()},
    "bevfusion-tiny": PRESETS["bevfusion-tiny"],
}
LARGE = [name for name in PRESETS if name != "bevfusion-tiny"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in CONFIGS]


def random_keep(groups: tuple[ChannelGroup, ...], seed: int) -> dict[str, Tensor]:
    """Between one channel and all of every group."""
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in groups:
        count = int(torch.randint(1, group.width + 1, (), generator=generator))
        keep[group.name] = torch.randperm(group.width, generator=generator)[:count].sort().values
    return keep


def in_float64(model: FusionModel, batch: FrameBatch) -> tuple[FusionModel, FrameBatch]:
    tensors = {name: t.double() if t.is_floating_point() else t for name, t in batch.tensors.items()}
    return model.double(), FrameBatch(tensors=tensors, size=batch.size)


@pytest.mark.parametrize("name", SLOW)
def test_shrunk_equals_masked(name: str) -> None:
    config = CONFIGS[name]
    model, batch = in_float64(fusion_model(config), frame_batch(config.geometry))
    groups = fusion_groups(model)
    dense = outputs_of(model, batch)
    for seed in range(1 if name in PRESETS else 3):
        keep = random_keep(groups, seed)
        shrunk, masked = outputs_of(shrink(model, groups, keep), batch), outputs_of(mask(model, groups, keep), batch)
        for key, found in shrunk.items():
            torch.testing.assert_close(found, masked[key], rtol=0, atol=1e-9)
        assert (dense["dense_heatmap"] - masked["dense_heatmap"]).abs().max() > 1e-2, "the mask must matter"


@pytest.mark.parametrize("name", CONFIGS)
def test_shrunk_equals_masked_in_float32(name: str) -> None:
    check_in_float32(CONFIGS[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_shrunk_equals_masked_at_full_size(name: str) -> None:
    config = PRESETS[name]
    image = dataclasses.replace(config.geometry.image, resize=None)
    check_in_float32(dataclasses.replace(config, geometry=dataclasses.replace(config.geometry, image=image)))


def check_in_float32(config: ModelConfig) -> None:
    model, batch = fusion_model(config), frame_batch(config.geometry)
    groups = fusion_groups(model)
    keep = random_keep(groups, 7)
    with torch.no_grad():
        found, expected = (bev_maps(cut(model, groups, keep), batch) for cut in (shrink, mask))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * max(1.0, float(other.abs().max())))


def bev_maps(model: FusionModel, batch: FrameBatch) -> tuple[Tensor, ...]:
    """Dense maps of the fusion part, and box properties of given queries: no top-k, so no ties to fall apart."""
    head = model.bbox_head
    bev = model.fuse(model.camera_branch(batch), model.lidar_branch(batch))
    features = head.shared_conv(bev)
    ground = () if model.map_head is None else (model.map_head(bev),)
    cells = features.flatten(2).transpose(1, 2)
    positions = head.bev_positions[:, :12].expand(batch.size, -1, -1)
    queries = head.decoder[0](cells[:, :12], cells, positions, head.bev_positions).transpose(1, 2)
    branches = [branch(queries) for branch in head.prediction_heads[0].values()]
    return features, head.heatmap_head(features), *branches, *ground


@pytest.mark.parametrize("name", CONFIGS)
def test_every_channel_that_can_go_is_in_the_table(name: str) -> None:
    """What every convolution and linear layer puts out is in the table, or on the short list of what stays."""
    model = fusion_model(CONFIGS[name])
    covered = {m.tensor for g in fusion_groups(model) for m in g.members if m.produces}
    layers = {f"{n}.weight" for n, m in model.named_modules() if hasattr(m, "weight") and m.weight.ndim > 1}
    stays = {n.removeprefix("bbox_head.").removesuffix(".weight") for n in layers - covered}
    branches = {f"prediction_heads.0.{b}.1" for b in ("center", "height", "dim", "rot", "vel", "heatmap")}
    positions = {f"decoder.0.{b}.position_embedding_head.3" for b in ("self_posembed", "cross_posembed")}
    attention = {f"decoder.0.{b}.attn.out_proj" for b in ("self_attn", "cross_attn")}
    others = {"shared_conv", "heatmap_head.1", "class_encoding", "decoder.0.ffn.layers.1"}
    others |= {"map_head.classifier.6"} if model.map_head is not None else set()
    assert stays == branches | positions | attention | others | stays_in_swin(model)


def stays_in_swin(model: FusionModel) -> set[str]:
    """Layers that compute the residual stream, whose width runs through LayerNorms."""
    ends = (".patch_embed.projection", ".w_msa.proj", ".ffn.layers.1", ".reduction", ".relative_position_bias_table")
    return {name for name, _ in model.named_modules() if name.startswith("img_backbone") and name.endswith(ends)}


class DenseCamera(nn.Module):
    """The traceable part: backbone, neck and lift without pooling."""

    def __init__(self, model: FusionModel) -> None:
        super().__init__()
        self.img_backbone, self.img_neck = model.img_backbone, model.img_neck
        self.view_transform = model.view_transform

    def forward(self, images: Tensor, depth: Tensor) -> Tensor:
        lift = self.view_transform
        return lift.depthnet(torch.cat([lift.dtransform(depth), self.img_neck(self.img_backbone(images))], dim=1))


@pytest.mark.parametrize("config", [BASIC, BOTTLENECK], ids=["basic", "bottleneck"])
@pytest.mark.filterwarnings("ignore")
def test_camera_groups_equal_those_of_a_tracer(config: ModelConfig) -> None:
    torch_pruning = pytest.importorskip("torch_pruning")
    model = fusion_model(config)
    camera = DenseCamera(model)
    graph = torch_pruning.DependencyGraph().build_dependency(
        camera, example_inputs=(torch.randn(1, 3, 64, 96), torch.randn(1, 1, 64, 96)), verbose=False
    )
    names = {module: name for name, module in camera.named_modules()}
    pooled = ("view_transform.depthnet.6", "view_transform.downsample.")
    for group in fusion_groups(model):
        if group.partition != "camera" or group.name.startswith(pooled):
            continue
        layer = camera.get_submodule(group.name)
        traced = graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=[group.width - 1])
        expected = set()
        for dependency, indices in traced:
            module = dependency.target.module
            if module in names and isinstance(module, nn.Conv2d | nn.BatchNorm2d):
                reads = "in_channels" in dependency.handler.__name__ and isinstance(module, nn.Conv2d)
                expected |= {(names[module], reads, int(i)) for i in indices}
        found = set()
        for member in group.members:
            if member.tensor.endswith(".weight"):
                entry = member.offset + (group.width - 1) * member.repeat
                found.add((member.tensor.removesuffix(".weight"), not member.produces, entry))
        assert found == expected, group.name


@pytest.mark.parametrize("config", [BASIC, BOTTLENECK, SWIN], ids=["basic", "bottleneck", "swin"])
def test_a_pruned_model_still_masks_its_branches(config: ModelConfig) -> None:
    model, batch = fusion_model(config), frame_batch(config.geometry)
    groups = fusion_groups(model)
    smaller = shrink(model, groups, random_keep(groups, 3))
    with torch.no_grad():
        camera, lidar = smaller.camera_branch(batch), smaller.lidar_branch(batch)
        assert (smaller.camera_channels, smaller.lidar_channels) == (camera.shape[1], lidar.shape[1])
        for masked, maps in (("camera", (camera * 0, lidar)), ("lidar", (camera, lidar * 0))):
            expected = smaller.bbox_head(smaller.fuse(*maps)).dense_heatmap
            found = smaller(batch, masked=masked).dense_heatmap  # type: ignore[arg-type]
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_pruning_twice_equals_masking_once() -> None:
    model, batch = in_float64(fusion_model(BOTTLENECK), frame_batch(BOTTLENECK.geometry))
    groups = fusion_groups(model)
    first = random_keep(groups, 1)
    smaller = shrink(model, groups, first)
    fewer = fusion_groups(smaller)
    assert {g.name: g.width for g in fewer} == {name: len(index) for name, index in first.items()}
    second = random_keep(fewer, 2)
    both = {name: first[name][second[name]] for name in first}
    twice, once = outputs_of(shrink(smaller, fewer, second), batch), outputs_of(mask(model, groups, both), batch)
    torch.testing.assert_close(twice["dense_heatmap"], once["dense_heatmap"], rtol=0, atol=1e-9)


def test_surgery_leaves_the_dense_model_alone() -> None:
    model = fusion_model(BASIC)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    groups = fusion_groups(model)
    keep = random_keep(groups, 0)
    shrunk = shrink(model, groups, keep)
    with torch.no_grad():
        for parameter in shrunk.parameters():
            parameter.zero_()
    mask(model, groups, keep)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


MAKER, READER = Slice(tensor="a", dim=0, produces=True), Slice(tensor="b", dim=1, offset=2, repeat=2, produces=False)
GROUP = ChannelGroup(name="g", partition="lidar", width=4, members=(MAKER, READER))
SHAPES = {"a": (4, 3), "b": (5, 10)}


def test_offset_and_repeat() -> None:
    check_groups([GROUP], SHAPES)
    assert READER.indices(torch.tensor([0, 3])).tolist() == [2, 3, 8, 9]


@pytest.mark.parametrize(
    ("group", "shapes", "message"),
    [
        (GROUP, {"a": (4, 3), "b": (5, 9)}, r"2\.\.9 of dimension 1 of b"),
        (GROUP, {"a": (4, 3)}, "names b"),
        (dataclasses.replace(GROUP, members=(MAKER,)), SHAPES, "lacks a producer or a consumer"),
        (dataclasses.replace(GROUP, members=(MAKER, MAKER, READER)), SHAPES, "in g and g"),
        (dataclasses.replace(GROUP, partition="radar"), SHAPES, "radar"),
    ],
)
def test_tables_that_do_not_fit(group: ChannelGroup, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(PruningError, match=message):
        check_groups([group], shapes)


@pytest.mark.parametrize("kept", [[], [2, 1], [1, 1], [0, 4], [-1, 2]])
def test_kept_channels_that_do_not_fit(kept: list[int]) -> None:
    with pytest.raises(PruningError, match=r"kept (in|channels of) g"):
        check_keep([GROUP], {"g": torch.tensor(kept, dtype=torch.int64)})
    with pytest.raises(PruningError, match="unknown channel group x"):
        check_keep([GROUP], {"x": torch.tensor([0])})


def test_scope() -> None:
    groups = fusion_groups(fusion_model(BASIC))
    assert {g.partition for g in select_groups(groups, ("camera", "lidar"))} == {"camera", "lidar"}
    with pytest.raises(PruningError, match="radar"):
        select_groups(groups, ("radar",))  # type: ignore[arg-type]
    with pytest.raises(PruningError, match="no channel group in scope"):
        select_groups(groups, ())


def test_contradicting_widths_are_an_error() -> None:
    model = fusion_model(BASIC)
    model.fusion_layer[0] = nn.Conv2d(95, 64, 3, padding=1, bias=False)
    with pytest.raises(PruningError, match="multiple of the LiDAR branch's 32"):
        fusion_groups(model)


def test_a_layer_that_is_not_understood_is_an_error() -> None:
    model = fusion_model(BASIC)
    model.img_backbone.layer2[0].conv2 = nn.Conv2d(64, 64, 3, padding=1, groups=2, bias=False)
    with pytest.raises(PruningError, match="grouped"):
        fusion_groups(model)
