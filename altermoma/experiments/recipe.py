"""What an experiment is asked to do, read from TOML: methods x amounts x seeds on one trained model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from altermoma import toml
from altermoma.errors import RecipeError
from altermoma.recipe import (
    ComputeRecipe,
    DataRecipe,
    Device,
    Method,
    Norms,
    PruneRecipe,
    Recipe,
    Redundancy,
    TrainRecipe,
    Unit,
    from_dict,
)

Granularity = Literal["weights", "channels"]
RECIPES = "recipes"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """AlterMOMA with weights, a reactivation or a selection of its own, a row; the weights' defaults are the paper's.

    0 and "" take the recipe's [prune]. Variants of the same `line` are joined in the plot over `ExperimentRecipe.over`.
    """

    name: str
    line: str = ""
    beta: float = 1.0
    redundancy: Redundancy = "difference"
    unit: Unit = "share"
    score_batches: int = 0
    score_rounds: int = 1
    reactivation_batches: int = 0
    reri_batches: int = 0
    reactivation_lr: float = 0.0
    norms: Literal["", Norms] = ""
    budget: Literal["", "flops", "channels", "params", "latency"] = ""
    selection: Literal["", "threshold", "greedy"] = ""

    @property
    def published(self) -> bool:
        """Whether the weights are the paper's: what it did with batches and rates is open."""
        return (self.beta, self.redundancy, self.unit) == (1.0, "difference", "share") and self.score_rounds == 1

    def of(self, recipe: PruneRecipe) -> PruneRecipe:
        """The recipe as this variant has it."""
        given = {key: value for key, value in dataclasses.asdict(self).items() if key not in {"name", "line"} and value}
        return dataclasses.replace(recipe, **{**given, "beta": self.beta})


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """What `--reduced` puts in the place of the recipe's own: enough to see that everything runs."""

    methods: tuple[Method, ...] = ("altermoma", "snip")
    amounts: tuple[float, ...] = ()
    seeds: int = 1
    steps: int = 10
    val_frames: int = 4


@dataclass(frozen=True, kw_only=True)
class ExperimentRecipe:
    """One table.

    Attributes:
        title: heading of the report.
        granularity: single weights under masks, or channels that are cut out.
        amounts: shares to remove, of the scored weights or of `prune.budget`; the most informative first, as the cells
            are run in this order.
        methods: in the order of the cells.
        variants: of AlterMOMA, a row each in the place of "altermoma". Empty: that of [prune] alone.
        seeds: 0, 1, ... of scoring frames and of the order of training frames.
        over: what the plot runs over where variants differ in it, as in the paper's figure 4; empty for the amount.
        timed: whether every cut model is timed on ONNX Runtime beside the dense one; for channels only.
        paper: key of the paper's figures to show beside (altermoma.experiments.paper); empty for none.
        val_frames: of the validation split, evenly spread; 0 takes all.
        device: where torch computes; no part of what a cell is known by.
        model, checkpoint, data, prune, finetune: as in a recipe of `altermoma-export`.
    """

    title: str
    granularity: Granularity = "weights"
    amounts: tuple[float, ...] = (0.9, 0.8, 0.85)
    methods: tuple[Method, ...] = ("altermoma", "prospr", "snip", "synflow", "imp", "magnitude", "random")
    variants: tuple[Variant, ...] = ()
    seeds: int = 3
    over: Literal["", "beta", "score_rounds", "reactivation_lr"] = ""
    timed: bool = False
    paper: str = ""
    model: str = "bevfusion-tiny"
    checkpoint: str = ""
    val_frames: int = 0
    device: Device = "auto"
    data: DataRecipe = field(default_factory=DataRecipe)
    prune: PruneRecipe = field(default_factory=PruneRecipe)
    finetune: TrainRecipe = field(default_factory=lambda: TrainRecipe(distill_weight=0.0))
    reduced: Reduced = field(default_factory=Reduced)

    def __post_init__(self) -> None:
        for amount in self.amounts:
            if not 0.0 < amount < 1.0:
                raise RecipeError(
                    f"amounts holds {amount:g}",
                    expected="shares to remove, above 0 and below 1",
                    remedy="0.9 removes nine tenths; the dense model is run anyway",
                )
        if not self.amounts or not self.methods or self.seeds < 1:
            raise RecipeError(
                f"an experiment of {len(self.amounts)} amounts, {len(self.methods)} methods and {self.seeds} seeds",
                expected="one or more of each",
            )
        if self.timed and self.granularity == "weights":
            raise RecipeError(
                "timed = true for single weights",
                expected='granularity = "channels"',
                remedy="masks make nothing faster: leave timed out",
            )
        self._check_lines()
        if self.finetune.distill_weight > 0.0:
            raise RecipeError(
                f"finetune.distill_weight = {self.finetune.distill_weight:g} in an experiment",
                expected="0: all methods are fine-tuned by labels alone",
                remedy="set distill_weight = 0.0 under [finetune]",
            )
        self.base()

    def _check_lines(self) -> None:
        lines = sum(bool(variant.line) for variant in self.variants)
        if bool(self.over) != bool(lines) or (self.over and len(self.amounts) > 1):
            raise RecipeError(
                f"over = {self.over!r}, {lines} variants with a line, {len(self.amounts)} amounts",
                expected="a key to plot over, variants that name their line and one amount; or neither key nor lines",
                remedy='give variants line = "..." and the experiment over = "beta", or leave both out',
            )

    def base(self) -> Recipe:
        """Model, data and training as a recipe of their own, whose values are checked."""
        return Recipe(
            model=self.model,
            checkpoint=self.checkpoint,
            data=self.data,
            prune=self.prune,
            finetune=self.finetune,
            compute=ComputeRecipe(device=self.device),
        )

    def as_reduced(self) -> ExperimentRecipe:
        small, usual = self.reduced, DataRecipe()
        return dataclasses.replace(
            self,
            # The world of ten scenes, which other commands use too: making a large one takes longer than the cells.
            data=dataclasses.replace(self.data, synth_scenes=usual.synth_scenes, train_split=usual.train_split),
            title=f"{self.title} (reduced)",
            methods=small.methods,
            amounts=small.amounts or self.amounts[:1],
            over="",
            variants=tuple(dataclasses.replace(variant, line="") for variant in self.variants[:1]),
            seeds=small.seeds,
            val_frames=small.val_frames,
            finetune=dataclasses.replace(self.finetune, steps=small.steps),
            prune=dataclasses.replace(
                self.prune, score_batches=1, reactivation_batches=1, reri_batches=1, imp_rounds=1, imp_steps=2
            ),
        )


def shipped() -> list[str]:
    """Names of the recipes in the package."""
    folder = resources.files("altermoma.experiments").joinpath(RECIPES)
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def load_experiment(name: str) -> ExperimentRecipe:
    """A shipped recipe by its name, or a TOML file."""
    if name in shipped():
        text = resources.files("altermoma.experiments").joinpath(f"{RECIPES}/{name}.toml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise RecipeError(
            f"no experiment {name!r}",
            expected="one of " + ", ".join(shipped()) + ", or a TOML file",
            remedy="choose one of these",
        )
    try:
        record = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise RecipeError(f"{name} is not valid TOML: {error}", expected="a TOML file") from error
    if "title" not in record:
        raise RecipeError(f"{name} has no title", expected='title = "..."')
    return from_dict(ExperimentRecipe, record)
