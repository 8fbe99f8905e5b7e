"""Channel groups of a fusion model, derived part by part from its modules.

Names are mmdet3d's BEVFusion's. Each part says which layers compute a stream of channels and which read it; widths
and concatenation offsets are read from weight shapes, so that a pruned model gets its own table. Not prunable: depth
bins, box properties and classes, and widths that run through LayerNorms: Swin's residual stream and the head's
embedding.
"""

from __future__ import annotations

from torch import nn

from altermoma.errors import PruningError
from altermoma.pruning.channels import ChannelGroup
from altermoma.pruning.streams import GroupBuilder, Stream


def fusion_groups(model: nn.Module) -> tuple[ChannelGroup, ...]:
    """Channel groups of a camera-LiDAR detector (see `models.fusion.FusionModel`), checked against its tensors.

    Raises:
        PruningError: layers whose widths contradict how the parts are joined, or a layer that is not understood.
    """
    build = GroupBuilder(model)
    camera = add_lss_neck(build, "img_neck", add_image_backbone(build, "img_backbone"))
    camera_bev = add_depth_lift(build, "view_transform", camera)
    if build.has("pts_voxel_encoder"):
        lidar_rows = add_pillar_encoder(build, "pts_voxel_encoder")
    else:
        lidar_rows = add_sparse_encoder(build, "pts_middle_encoder")
    join_fuser(build, "fusion_layer.0", camera_bev, lidar_rows)
    fused = build.stream("fusion_layer.0", "fusion_layer.1")
    levels = add_second(build, "pts_backbone", fused)
    heads = ["bbox_head.shared_conv", *(["map_head.classifier.0"] if build.has("map_head") else [])]
    add_second_fpn(build, "pts_neck", levels, heads)
    add_transfusion_head(build, "bbox_head")
    if build.has("map_head"):
        add_map_head(build, "map_head")
    return build.groups()


def add_chain(build: GroupBuilder, root: str, source: Stream | None = None) -> Stream:
    """Sequential of convolution, norm, activation triples; returns the stream that leaves it."""
    layers = build.children(root)
    for conv, norm in zip(layers[::2], layers[1::2], strict=True):
        if source is not None:
            source.read_by(conv)
        source = build.stream(conv, norm)
    if source is None:
        raise PruningError(f"{root} has no layers", expected="convolution and norm pairs")
    return source


def add_image_backbone(build: GroupBuilder, root: str) -> list[Stream]:
    """The backbone's own channels; returns the stream that leaves each stage."""
    return add_swin(build, root) if build.has(f"{root}.patch_embed") else add_resnet(build, root)


def add_swin(build: GroupBuilder, root: str) -> list[Stream]:
    """Swin's feed-forward widths and head dimensions. Its residual widths run through LayerNorms and stay."""
    features = []
    for stage, name in enumerate(build.children(f"{root}.stages")):
        for block in build.children(f"{name}.blocks"):
            build.attention(f"{block}.attn.w_msa")
            build.stream(f"{block}.ffn.layers.0.0").read_by(f"{block}.ffn.layers.1")
        if build.has(f"{root}.norm{stage}"):
            features.append(Stream(fixed=build.tensors[f"{root}.norm{stage}.weight"].numel()))
    return features


def add_resnet(build: GroupBuilder, root: str) -> list[Stream]:
    """ResNet of basic blocks or bottlenecks; returns the residual stream that leaves each stage."""
    stream = build.stream(f"{root}.conv1", f"{root}.bn1")
    stages = []
    stage = 1
    while build.has(f"{root}.layer{stage}"):
        for block in build.children(f"{root}.layer{stage}"):
            stream = add_residual_block(build, block, stream)
        stages.append(stream)
        stage += 1
    return stages


def add_residual_block(build: GroupBuilder, block: str, entering: Stream) -> Stream:
    """One block, dense or sparse; returns the stream that leaves it: the entering one where the shortcut is plain."""
    last = 3 if build.has(f"{block}.conv3") else 2
    inner = entering
    for index in range(1, last):
        inner.read_by(f"{block}.conv{index}")
        inner = build.stream(f"{block}.conv{index}", f"{block}.bn{index}")
    inner.read_by(f"{block}.conv{last}")
    if build.has(f"{block}.downsample"):
        entering.read_by(f"{block}.downsample.0")
        entering = build.stream(f"{block}.downsample.0", f"{block}.downsample.1")
    return entering.made_by(f"{block}.conv{last}", f"{block}.bn{last}")


def add_lss_neck(build: GroupBuilder, root: str, stages: list[Stream]) -> Stream:
    """GeneralizedLSSFPN over the last stages: each lateral convolution reads [finer feature, coarser result]."""
    laterals = build.children(f"{root}.lateral_convs")
    used = stages[-len(laterals) - 1 :]
    coarser = used[-1]
    for level in reversed(range(len(laterals))):
        lateral, fpn = f"{laterals[level]}.conv", f"{root}.fpn_convs.{level}"
        offset = build.width(used[level])
        build.check_reads(lateral, offset + build.width(coarser))
        used[level].read_by(lateral)
        coarser.read_by(lateral, offset)
        build.stream(lateral, f"{laterals[level]}.bn").read_by(f"{fpn}.conv")
        coarser = build.stream(f"{fpn}.conv", f"{fpn}.bn")
    return coarser


def add_depth_lift(build: GroupBuilder, root: str, features: Stream) -> Stream:
    """DepthLSS: [depth, picture features] -> depthnet -> [depth bins (kept), pixel features] -> downsampling."""
    depth = add_chain(build, f"{root}.dtransform")
    *layers, last = build.children(f"{root}.depthnet")
    first = layers[0]
    build.check_reads(first, build.width(depth) + build.width(features))
    depth.read_by(first)
    features.read_by(first, build.width(depth))
    for index in range(0, len(layers), 2):
        conv, norm = layers[index : index + 2]
        following = layers[index + 2] if index + 2 < len(layers) else last
        build.stream(conv, norm).read_by(following)
    context = build.stream(last, offset=build.depth_bins(root))
    return add_chain(build, f"{root}.downsample", context) if build.has(f"{root}.downsample") else context


def add_sparse_encoder(build: GroupBuilder, root: str) -> Stream:
    """SECOND's sparse encoder: residual blocks, with a strided convolution at the end of each stage but the last."""
    stream = build.stream(f"{root}.conv_input.0", f"{root}.conv_input.1")
    stage = 1
    while build.has(f"{root}.encoder_layers.encoder_layer{stage}"):
        for unit in build.children(f"{root}.encoder_layers.encoder_layer{stage}"):
            if build.has(f"{unit}.conv1"):
                stream = add_residual_block(build, unit, stream)
            else:
                stream.read_by(f"{unit}.0")
                stream = build.stream(f"{unit}.0", f"{unit}.1")
        stage += 1
    stream.read_by(f"{root}.conv_out.0")
    return build.stream(f"{root}.conv_out.0", f"{root}.conv_out.1")


def add_pillar_encoder(build: GroupBuilder, root: str) -> Stream:
    """PointPillars' layers: each but the first reads [a point's channels, their maximum over its pillar]."""
    first, *following = build.children(f"{root}.pfn_layers")
    stream = build.stream(f"{first}.linear", f"{first}.norm")
    for layer in following:
        reader, width = f"{layer}.linear", build.width(stream)
        build.check_reads(reader, 2 * width)
        stream.read_by(reader).read_by(reader, width)
        stream = build.stream(reader, f"{layer}.norm")
    return stream


def join_fuser(build: GroupBuilder, fuser: str, camera: Stream, lidar: Stream) -> None:
    """The fuser reads [camera channels, LiDAR channels], where LiDAR channel c fills Z inputs, one per height cell."""
    offset = build.width(camera)
    repeat, rest = divmod(build.in_width(fuser) - offset, build.width(lidar))
    if repeat < 1 or rest:
        raise PruningError(
            f"{fuser} reads {build.in_width(fuser)} channels of which {offset} are the camera's",
            expected=f"the others to be a multiple of the LiDAR branch's {build.width(lidar)}",
        )
    camera.read_by(fuser)
    lidar.read_by(fuser, offset, repeat)


def add_second(build: GroupBuilder, root: str, entering: Stream) -> list[Stream]:
    """SECOND's dense backbone; returns the stream that leaves each level."""
    levels = []
    for block in build.children(f"{root}.blocks"):
        entering = add_chain(build, block, entering)
        levels.append(entering)
    return levels


def add_second_fpn(build: GroupBuilder, root: str, levels: list[Stream], readers: list[str]) -> None:
    """SECONDFPN: one resampling layer per level, concatenated into each of `readers`."""
    offset = 0
    for level, deblock in zip(levels, build.children(f"{root}.deblocks"), strict=True):
        level.read_by(f"{deblock}.0")
        raised = build.stream(f"{deblock}.0", f"{deblock}.1")
        for reader in readers:
            raised.read_by(reader, offset)
        offset += build.width(raised)
    for reader in readers:
        build.check_reads(reader, offset)


def add_map_head(build: GroupBuilder, root: str) -> None:
    """Hidden widths of the map classifier; its grid transform mixes no channels."""
    *layers, last = build.children(f"{root}.classifier")
    for conv, norm, reader in zip(layers[::2], layers[1::2], [*layers[2::2], last], strict=True):
        build.stream(conv, norm).read_by(reader)


def add_transfusion_head(build: GroupBuilder, root: str) -> None:
    """Hidden widths of the heatmap head, the position embeddings, the feed-forward network and the box branches."""
    build.stream(f"{root}.heatmap_head.0.conv", f"{root}.heatmap_head.0.bn").read_by(f"{root}.heatmap_head.1")
    for layer in build.children(f"{root}.decoder"):
        for name in ("self_posembed", "cross_posembed"):
            embedding = f"{layer}.{name}.position_embedding_head"
            build.stream(f"{embedding}.0", f"{embedding}.1").read_by(f"{embedding}.3")
        build.stream(f"{layer}.ffn.layers.0.0").read_by(f"{layer}.ffn.layers.1")
    for level in build.children(f"{root}.prediction_heads"):
        for branch in build.names(level):
            build.stream(f"{branch}.0.conv", f"{branch}.0.bn").read_by(f"{branch}.1")
