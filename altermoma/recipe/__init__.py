"""Recipes: everything a run is asked to do, as frozen dataclasses read from TOML.

A new key is one line in its section's dataclass (`sections`) and, for a number, one with what it may be (`ranges`).
"""

from altermoma.recipe.ranges import RANGES
from altermoma.recipe.reading import from_dict, load, parse
from altermoma.recipe.sections import (
    BenchRecipe,
    BuilderRecipe,
    CalibrationRecipe,
    ComputeRecipe,
    DataRecipe,
    Device,
    EngineRecipe,
    ExportRecipe,
    HardwareLevel,
    Method,
    Norms,
    ParityRecipe,
    Partition,
    Precision,
    PruneRecipe,
    Recipe,
    Redundancy,
    Sparsity,
    StageName,
    TrainPrecision,
    TrainRecipe,
    Unit,
    at_full_size,
)

__all__ = [
    "RANGES",
    "BenchRecipe",
    "BuilderRecipe",
    "CalibrationRecipe",
    "ComputeRecipe",
    "DataRecipe",
    "Device",
    "EngineRecipe",
    "ExportRecipe",
    "HardwareLevel",
    "Method",
    "Norms",
    "ParityRecipe",
    "Partition",
    "Precision",
    "PruneRecipe",
    "Recipe",
    "Redundancy",
    "Sparsity",
    "StageName",
    "TrainPrecision",
    "TrainRecipe",
    "Unit",
    "at_full_size",
    "from_dict",
    "load",
    "parse",
]
