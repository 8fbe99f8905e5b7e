"""What a run can be asked to do: one frozen dataclass per section of a recipe, with the defaults."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from altermoma.recipe.ranges import check_values

Precision = Literal["fp32", "fp16", "int8"]
Sparsity = Literal["dense", "2:4"]
Partition = Literal["camera", "lidar", "fusion"]
StageName = Literal["camera", "view", "lidar", "fusion", "head"]
HardwareLevel = Literal["none", "ampere_plus", "same_compute_capability"]
Device = Literal["auto", "cpu", "cuda"]
TrainPrecision = Literal["fp32", "tf32", "bf16", "fp16"]
Method = Literal["altermoma", "imp", "snip", "synflow", "prospr", "magnitude", "random"]
Redundancy = Literal["difference", "factor"]
Unit = Literal["share", "loss"]
Norms = Literal["running", "batch"]


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """Where frames come from. An empty root means the synthetic world, made on first use and cached.

    Attributes:
        sweeps: LiDAR sweeps merged per frame, the key sweep included.
        repeat_key: a frame without earlier sweeps has its key sweep once for each, without what is close, as mmdet3d's
            `pad_empty_sweeps`.
        map_masks: folder with the truth of the map head, for models that have one (altermoma.data.map_masks).
    """

    root: str = ""
    version: str = "v1.0-mini"
    train_split: str = "mini_train"
    val_split: str = "mini_val"
    sweeps: int = 3
    repeat_key: bool = False
    map_masks: str = ""
    synth_scenes: int = 10
    synth_seed: int = 7


@dataclass(frozen=True, kw_only=True)
class PruneRecipe:
    """Pruning of channels, or of single weights: `amount` is the share removed of `budget`.

    AlterMOMA's scores are those of paper eq. 11-13.

    Attributes:
        method: AlterMOMA, or what the paper compares it with, or a control (altermoma.pruning.methods).
        budget: what `amount` is a share of. "latency" is the milliseconds of all stages, from tables that are measured
            first: on ONNX Runtime and this machine's processor (altermoma.workflow.stage_times), or where
            `latency_tables` were.
        latency_tables: file of milliseconds that `altermoma tables measure` left on the target
            (docs/latency_tables.md); empty measures here.
        channel_step: widths of dense layers are multiples of this: below, convolution kernels pad instead. 0 takes
            the step of the engine's target and precision (deploy/<target>/target.toml), for 2:4 at least 16.
        lidar_channel_step: the same for the sparse encoder, whose gathered rows are rows of matrices; 0 is 8, or 16
            for 2:4.
        min_channels: least width, rounded up to the step.
        score_batches: for the contribution. Here and in the next three, 0 goes by the size of the model: 8, 8 and 4
            batches of 2 frames, or 2, 2 and 1 of a single one where pictures have more than 100 000 pixels
            (altermoma/workflow/scoring.py). More frames take more time, but no more memory.
        score_rounds: in which AlterMOMA removes `amount`; after each, the contribution of what stays is measured again.
            The paper has one (altermoma.pruning.methods.altermoma).
        reactivation_batches: gradient steps of the reactivation.
        reri_batches: for the redundancy, the first of the reactivation's.
        threshold: over all single weights, or one per partition, which then all lose the same share.
        alpha, beta: weights of contribution and redundancy. The paper's are 1 and 1, in one round and in shares; what
            these and the defaults do is in docs/benchmarks/experiments.md.
        redundancy: how it lowers the contribution: the paper's difference, or a factor (altermoma.pruning.altereva).
        unit: of the scores across partitions: shares of each partition, as in the paper, or loss.
        batch_size: frames of each.
        norms: what batch norms use while gradients are taken: the batch's own statistics, as fine-tuning will, or the
            running ones (altermoma.pruning.masking). Of AlterMOMA and SNIP; ProsPr trains anyway.
        two_four_rule: how wide a layer must be to become 2:4, where the engine's sparsity is that
            (altermoma/pruning/two_four_rules.py).
        two_four_permute: reorder channels first, so that 2:4 keeps more magnitude.
        imp_rounds, imp_steps: rounds of training and removing in IMP, and the training steps of each.
        synflow_rounds: rounds of SynFlow.
        prospr_steps, prospr_lr: gradient steps that ProsPr differentiates through, and their size.
        prospr_draws: times that it does so, each on batches of its own.
    """

    budget: Literal["flops", "channels", "params", "latency", "weights"] = "flops"
    latency_tables: str = ""
    amount: float = 0.3
    scope: tuple[Partition, ...] = ("camera", "lidar", "fusion")
    channel_step: int = 0
    lidar_channel_step: int = 0
    min_channels: int = 8
    alpha: float = 1.0
    beta: float = 0.25
    score_batches: int = 0
    score_rounds: int = 4
    reactivation_batches: int = 0
    reri_batches: int = 0
    reactivation_lr: float = 1e-3
    redundancy: Redundancy = "difference"
    unit: Unit = "loss"
    batch_size: int = 0
    norms: Norms = "batch"
    aggregation: Literal["channel", "element"] = "channel"
    selection: Literal["threshold", "greedy"] = "threshold"
    threshold: Literal["global", "partition"] = "global"
    two_four_rule: Literal["pattern", "aligned", "wide"] = "aligned"
    two_four_permute: bool = True
    method: Method = "altermoma"
    imp_rounds: int = 3
    imp_steps: int = 100
    synflow_rounds: int = 100
    prospr_steps: int = 3
    prospr_draws: int = 2
    prospr_lr: float = 1e-3
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class TrainRecipe:
    """One training or fine-tuning run. `steps` counts optimiser steps.

    Attributes:
        warmup_share: share of the steps during which the learning rate rises.
        ema_decay: of the averaged weights, which are what training returns; 0 returns the last weights.
        depth_weight: of the auxiliary loss that teaches the camera branch its depth from LiDAR returns (as BEVDepth);
            without it a tiny camera branch does not find objects in thousands of steps.
        distill_weight: of the loss that holds a pruned model against the dense one, in altermoma-export and in
            `altermoma train --teacher`. The rounds of IMP train by labels alone, and experiments refuse it.
        match_radius: metres; a true box is matched to no query farther away. 0 sets no limit, as TransFusion.
        checkpoint_every: steps between two saved states; a kill loses at most so many.
    """

    steps: int = 300
    batch_size: int = 2
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup_share: float = 0.1
    grad_clip: float = 10.0
    schedule: Literal["cosine", "one-cycle"] = "one-cycle"
    augment: bool = True
    masked: Literal["none", "camera", "lidar"] = "none"
    ema_decay: float = 0.0
    match_radius: float = 4.0
    depth_weight: float = 0.5
    distill_weight: float = 1.0
    checkpoint_every: int = 50
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class ExportRecipe:
    """Tolerances are the largest absolute difference to torch over the largest torch magnitude of that output.

    `..._tolerance` bounds each stage fed with torch's inputs, `..._frame_tolerance` the stages in a chain, where
    differences add up. `int8_tolerance` bounds the noise of each stage over its signal (roots of their powers) instead:
    more ends the export, and what was measured below it is what engines are held to (altermoma.deploy.noise);
    what int8 costs is judged in mAP ([parity] and [calibration]).
    """

    opset: int = 17
    fp32_tolerance: float = 1e-4
    fp32_frame_tolerance: float = 1e-3
    fp16_tolerance: float = 5e-2
    fp16_frame_tolerance: float = 5e-2
    int8_tolerance: float = 0.7


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe:
    """How int8 ranges are found; read only where the engine's precision is int8.

    Attributes:
        recipe: name of `calib/<dataset>.toml`, or the path of one's own; empty takes `synthetic` for the synthetic
            world and `nuscenes` for everything else.
        manifest: file that names the frames; empty chooses them from the training split.
        ranges: file of ranges found before on the frames of `manifest`, instead of running them again.
        max_map_drop: points of mAP that int8 may cost on the validation split; the largest int8 share within it is
            searched for. 0 takes the calibration recipe's share as it is.
        tune_steps: steps of fine-tuning with rounding, for models that lose more than they may; `altermoma calibrate`
            takes them, an export refuses them.
    """

    recipe: str = ""
    manifest: str = ""
    ranges: str = ""
    max_map_drop: float = 0.0
    tune_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class ParityRecipe:
    """How far an engine's final boxes may be from torch's over the validation split.

    Attributes:
        fp32_boxes: every box of torch is found again, none farther off than this in any number (m, rad, m/s).
        fp16_map: largest difference of mAP, 0 to 1; rounding moves single boxes more than their mean worth.
        int8_map: the same of int8 graphs.
        beyond: what becomes of a run that is beyond: "error" ends it without a bundle, "note" makes the bundle and says
            so in the summary.
    """

    fp32_boxes: float = 1e-3
    fp16_map: float = 2e-3
    int8_map: float = 1e-2
    beyond: Literal["error", "note"] = "error"


@dataclass(frozen=True, kw_only=True)
class EngineRecipe:
    """What engines compute in.

    Attributes:
        sparsity: "2:4" prunes single weights too, after channels: of four input channels two stay ([prune] two_four_*).
    """

    precision: Precision = "fp16"
    sparsity: Sparsity = "dense"
    target: str = "generic"
    build: Literal["auto", "require", "never"] = "auto"


@dataclass(frozen=True, kw_only=True)
class BuilderRecipe:
    """How TensorRT builds. A key left at its default is the target's (`[builder]` of its profile), else TensorRT's own.

    What the TensorRT at hand lacks is an error, never left out. Everything here is part of an engine's key.

    Attributes:
        optimization_level: 0 to 5, from 8.6; -1 leaves TensorRT's own.
        workspace_mib: limit of scratch memory; 0 leaves TensorRT's own, as with the next two.
        tactic_dram_mib: limit of device memory that one tactic may take, from 8.6.
        tactic_shared_kib: limit of shared memory that one tactic may take, from 10.
        tf32: lets fp32 layers use TF32 tensor cores; off, so that fp32 means fp32.
        version_compatible: plans also load in later versions of the same major, from 8.6.
        hardware_compatible: plans also run on other GPUs: of Ampere or later (8.6), of the same compute capability
            (10.9).
        dla_stages: stages to put on a deep-learning accelerator.
        dla_core: which one.
        gpu_fallback: layers that the accelerator lacks run on the GPU, and are named; otherwise they are an error.
        refit: the weights of an engine can be exchanged.
        strip: plans without weights, which are taken from the bundle's graph as they are loaded; from 10.
    """

    optimization_level: int = -1
    workspace_mib: int = 0
    tactic_dram_mib: int = 0
    tactic_shared_kib: int = 0
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: HardwareLevel = "none"
    dla_stages: tuple[StageName, ...] = ()
    dla_core: int = 0
    gpu_fallback: bool = False
    refit: bool = False
    strip: bool = False


@dataclass(frozen=True, kw_only=True)
class BenchRecipe:
    frames: int = 8
    rounds: int = 5
    warmup: int = 1
    threads: int = 1


@dataclass(frozen=True, kw_only=True)
class ComputeRecipe:
    """Where torch computes, and how: training, scores, pruning and evaluation. Exports are always traced on the CPU.

    Attributes:
        device: auto is a GPU where torch has one.
        precision: of training. tf32 rounds the operands of products on a GPU; bf16 and fp16 compute them in sixteen
            bits, weights, norms, heads and losses stay in float32. Scores and evaluation are in float32 whatever it is.
        accumulate: equal parts that a training batch is computed in, one after the other: less memory. Losses and
            batch norms are then those of the parts.
        workers: processes that read training frames; 0 reads in a thread of the training process.
    """

    device: Device = "auto"
    precision: TrainPrecision = "fp32"
    accumulate: int = 1
    workers: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run of `altermoma-export`."""

    name: str = "bevfusion-tiny"
    model: str = "bevfusion-tiny"
    checkpoint: str = ""
    data: DataRecipe = field(default_factory=DataRecipe)
    prune: PruneRecipe = field(default_factory=PruneRecipe)
    finetune: TrainRecipe = field(default_factory=TrainRecipe)
    export: ExportRecipe = field(default_factory=ExportRecipe)
    calibration: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    parity: ParityRecipe = field(default_factory=ParityRecipe)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    builder: BuilderRecipe = field(default_factory=BuilderRecipe)
    bench: BenchRecipe = field(default_factory=BenchRecipe)
    compute: ComputeRecipe = field(default_factory=ComputeRecipe)

    def __post_init__(self) -> None:
        check_values(self)

    def to_dict(self) -> dict[str, Any]:
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain

    def to_toml(self) -> str:
        # Whoever only reads recipes can do without.
        import tomli_w

        return tomli_w.dumps(self.to_dict())


def at_full_size(recipe: Recipe) -> Recipe:
    """The recipe with what a detector of full size, on six pictures of 256 x 704, asks of two cores and 16 GiB.

    Fine-tuning on a CPU would take half a day: it is left to mmdet3d (docs/checkpoints.md).
    """
    return dataclasses.replace(recipe, finetune=dataclasses.replace(recipe.finetune, steps=0))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value
