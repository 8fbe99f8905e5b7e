"""What the steps of one run share: data, geometry, weights. Everything follows from the recipe and files on disk."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from altermoma.data.augment import Augment
from altermoma.data.dataset import FrameDataset
from altermoma.data.map_masks import MapMasks
from altermoma.data.nuscenes import NuScenesReader
from altermoma.errors import CheckpointError, DataError, RecipeError
from altermoma.geometry import Geometry
from altermoma.progress import say
from altermoma.recipe import Recipe

if TYPE_CHECKING:
    import torch

    from altermoma.models.config import ModelConfig
    from altermoma.models.fusion import FusionModel

MapShape = tuple[int, int, int]
"""Classes, cells along x, cells along y."""


class Workplace:
    """Opens data and models of a recipe on first use and keeps them for later steps."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._prepared: dict[tuple[Geometry, MapShape | None], FrameDataset] = {}
        if recipe.compute.device == "cuda":
            from altermoma.models.devices import choose_device

            choose_device("cuda")  # a GPU that is not there is said before any work

    @cached_property
    def root(self) -> Path:
        """Folder of the data set; the synthetic world is made where none is named and none is cached."""
        data = self.recipe.data
        if not data.root:
            from altermoma.data.synth import cached_world

            return cached_world(scenes=data.synth_scenes, seed=data.synth_seed)
        root = Path(data.root)
        if not root.is_dir():
            raise DataError(
                f"no data at {root}",
                expected=f"a nuScenes folder with {data.version}/ beside samples/ and sweeps/",
                remedy="check --data; without it the synthetic world is used",
            )
        return root

    @cached_property
    def reader(self) -> NuScenesReader:
        data = self.recipe.data
        return NuScenesReader(self.root, data.version, sweeps=data.sweeps, repeat_key=data.repeat_key)

    @cached_property
    def config(self) -> ModelConfig:
        """The preset's configuration, or that of the recipe's checkpoint, which may be another of its kind."""
        from altermoma.checkpoints.io import PICKLED, config_from_checkpoint
        from altermoma.models.presets import config_of

        if self.recipe.checkpoint and self.checkpoint.suffix not in PICKLED:
            return config_from_checkpoint(self.checkpoint)
        return config_of(self.recipe.model)

    @property
    def geometry(self) -> Geometry:
        return self.config.geometry

    @cached_property
    def checkpoint(self) -> Path:
        """Weights of the dense model."""
        if not self.recipe.checkpoint:
            from altermoma.checkpoints.io import bundled_checkpoint

            return bundled_checkpoint(self.recipe.model)
        path = Path(self.recipe.checkpoint)
        if not path.is_file():
            raise CheckpointError(
                f"no checkpoint at {path}", expected="a safetensors file", remedy="check --checkpoint"
            )
        return path

    @property
    def map_shape(self) -> MapShape | None:
        """Classes and cells of the map head; None without one."""
        config = self.config.map
        return None if config is None else (config.classes, config.cells, config.cells)

    def masks(self, shape: MapShape | None) -> MapMasks | None:
        """Truth of a map head of this shape, where the recipe names some."""
        if not self.recipe.data.map_masks:
            return None
        if shape is None:
            raise RecipeError(
                "data.map_masks for a model that has no map head",
                expected="a model with a map head",
                remedy="leave data.map_masks out, or choose another model",
            )
        return MapMasks(Path(self.recipe.data.map_masks), shape)

    @property
    def val(self) -> FrameDataset:
        """Validation frames as they are."""
        return self.val_for(self.geometry, self.map_shape)

    def val_for(self, geometry: Geometry, map_shape: MapShape | None = None) -> FrameDataset:
        """Validation frames as they are, prepared for a model of this geometry and map."""
        key = geometry, map_shape
        if key not in self._prepared:
            tokens = self.reader.tokens(self.recipe.data.val_split)
            self._prepared[key] = FrameDataset(self.reader, tokens, geometry, masks=self.masks(map_shape))
        return self._prepared[key]

    @cached_property
    def train(self) -> FrameDataset:
        """Training frames, augmented as the recipe's fine-tuning asks."""
        augment = Augment() if self.recipe.finetune.augment else None
        return FrameDataset(
            self.reader,
            self.reader.tokens(self.recipe.data.train_split),
            self.geometry,
            augment=augment,
            masks=self.masks(self.map_shape),
        )

    @cached_property
    def device(self) -> torch.device:
        """Where models of this run compute, said once."""
        from altermoma.models.devices import choose_device, describe_device

        chosen = choose_device(self.recipe.compute.device)
        say(f"computing on {describe_device(chosen)}")
        return chosen

    def dense_model(self) -> FusionModel:
        """The dense model on the run's device."""
        return self.model(self.checkpoint)

    def model(self, checkpoint: Path) -> FusionModel:
        """The recipe's preset with the weights, and so the widths, of a checkpoint; in eval mode, on the device."""
        return self.model_on_host(checkpoint).to(self.device)

    def model_on_host(self, checkpoint: Path) -> FusionModel:
        """The same in host memory, to be exported or timed there."""
        from altermoma.checkpoints.io import model_from_checkpoint

        return model_from_checkpoint(checkpoint, preset=self.recipe.model)
