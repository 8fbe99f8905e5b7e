"""Stage contracts: the one that ships, and every way to get one wrong."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import tomllib
from export_frames import PRESET, random_frame

from altermoma.errors import RecipeError
from altermoma.export.contract import ModelContract, load_contract, parse_contract, read_contract
from altermoma.export.export_model import frame_inputs
from altermoma.models.presets import PRESETS, build
from altermoma.models.stages import stage_modules
from altermoma.ops.sparse_tables import SEGMENTS, level_shapes, segment_names

ROOT = Path(__file__).resolve().parents[2]

GOOD = """
schema = 1
models = ["toy"]
[axes]
N = { min = 0, opt = 10, max = 20, meaning = "rows" }
[widths]
C = "channels"
[stages.first]
meaning = "rows to features"
[stages.first.inputs]
rows = { dtype = "float32", shape = ["N", 5], meaning = "rows", unit = "m", island = true }
[stages.first.outputs]
features = { dtype = "float32", shape = [1, "C"], meaning = "features", unit = "1", between = true }
[stages.second]
meaning = "features to scores"
fp32_nodes = ["norm"]
unordered = { labels = "labels", position = "position", score = "score" }
[stages.second.inputs]
features = { dtype = "float32", shape = [1, "C"], meaning = "features", unit = "1", between = true }
[stages.second.outputs]
labels = { dtype = "int32", shape = [1, 3], meaning = "class", unit = "index" }
position = { dtype = "float32", shape = [1, 2, 3], meaning = "x, y", unit = "m" }
score = { dtype = "float32", shape = [1, 2, 3], meaning = "score", unit = "1" }
"""


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_shipped_contract_names_the_stages_of_its_preset(preset: str) -> None:
    contract = load_contract(preset)
    modules = stage_modules(build(preset))
    assert contract.model == preset
    assert [stage.name for stage in contract.stages] == list(modules)
    for stage in contract.stages:
        assert tuple(spec.name for spec in stage.inputs) == modules[stage.name].inputs
        assert tuple(spec.name for spec in stage.outputs) == modules[stage.name].outputs


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_shipped_contract_has_the_sizes_of_its_preset(preset: str) -> None:
    contract, config = load_contract(preset), PRESETS[preset]
    geometry = config.geometry
    cells, bev, classes = math.prod(geometry.pool_shape), geometry.bev_shape, config.head.classes
    rows, columns = geometry.image.feature_hw
    pillars = geometry.lidar == "pillars"
    sizes = {
        "images": (geometry.image.cameras, 3, geometry.image.height, geometry.image.width),
        "depth": (geometry.image.cameras, 1, geometry.image.height, geometry.image.width),
        "depth_weights": (geometry.image.cameras, rows, columns, geometry.depth_count),
        "pool_depth": (geometry.image.cameras * columns, "R1", rows),
        "pool_sum_1": ("R2", geometry.fan_in[0]),
        f"pool_sum_{len(geometry.fan_in)}": (cells, geometry.fan_in[-1]),
        "bev_table": (math.prod(geometry.fused_shape), 1 if pillars else level_shapes(geometry)[-1][2]),
        "bev": (1, "bev_channels", *bev),
        "query_labels": (1, config.head.proposals),
        "heatmap": (1, classes, config.head.proposals),
    }
    found = {spec.name: spec.shape for stage in contract.stages for spec in (*stage.inputs, *stage.outputs)}
    assert {name: found[name] for name in sizes} == sizes
    for name in ("camera_bev", "lidar_bev"):
        assert found[name][2:] == geometry.fused_shape
    # Up to three of the four segments of a level may be empty and hold a row of no voxel.
    assert contract.axes["N" if pillars else "N0"].maximum == geometry.max_voxels + (0 if pillars else 3)
    for level, limit in enumerate(geometry.level_rows, start=1):
        assert {contract.axes[f"N{level}_{segment}"].maximum for segment in SEGMENTS} == {limit}
    if pillars:
        assert found["pillar_table"] == ("N", geometry.max_points_per_voxel)
        assert contract.axes["P"].maximum == geometry.max_voxels * geometry.max_points_per_voxel
    # Four runs per depth bin leave room for tilted cameras; a partial sum is of more runs than the last table takes.
    assert contract.axes["R1"].maximum >= 4 * geometry.depth_count
    runs = geometry.image.cameras * columns * contract.axes["R1"].maximum
    assert contract.axes["R2"].maximum >= runs // (geometry.fan_in[-1] + 1)


def test_prepared_frame_fits_the_shipped_contract() -> None:
    contract, inputs = load_contract(PRESET), random_frame(4000)
    bindings: dict[str, int] = {}
    assert {spec.name for spec in frame_inputs(contract)} == set(inputs)
    for spec in frame_inputs(contract):
        contract.check_array(spec, inputs[spec.name], bindings)
    assert bindings["N0"] == len(inputs["voxels"])
    assert set(bindings) == set(contract.axes)


def test_largest_rows_cover_the_geometry() -> None:
    contract = load_contract(PRESET)
    # A crowded frame: more voxels than the model takes, spread so that every level has as many rows as can be.
    inputs = random_frame(60000)
    for name, table in (("N3", "out_table"), ("R2", "pool_sum_1")):
        assert len(inputs[table]) <= contract.axes[name].maximum
    for level in (1, 2):
        rows = sum(len(inputs[table]) for table in segment_names(f"subm_table_{level}"))
        # One segment may hold nearly all rows.
        assert all(rows <= contract.axes[f"N{level}_{segment}"].maximum for segment in SEGMENTS)


def test_wheel_carries_the_contracts_where_they_are_looked_for() -> None:
    build_table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert build_table["force-include"]["export"] == "altermoma/export/contracts"


def test_unknown_model_lists_the_known() -> None:
    with pytest.raises(RecipeError, match=PRESET):
        load_contract("bevfusion-huge")


def test_missing_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml"):
        read_contract(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="not valid TOML"):
        parse_contract("schema = [")


def test_good_contract_is_read() -> None:
    contract = parse_contract(GOOD)
    first, second = contract.stages
    assert first.tensor("rows").island
    assert contract.dynamic_axes(first.tensor("rows")) == {0: "N"}
    assert second.unordered is not None
    assert second.unordered.position == "position"
    assert contract.stage("second") is second
    with pytest.raises(RecipeError, match="no stage third"):
        contract.stage("third")
    with pytest.raises(RecipeError, match="no tensor other"):
        first.tensor("other")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "schema"),
        ('models = ["toy"]', 'modle = "toy"', "lacks model"),
        ("[widths]", "[other]\na = 1\n[widths]", "unknown key other"),
        ("min = 0, opt = 10", "min = 11, opt = 10", "min 11"),
        ("max = 20", "max = 1.5", "max 1.5"),
        ('C = "channels"', 'N = "channels"', "both an axis and a width"),
        ('["N", 5]', '["M", 5]', "names 'M'"),
        ('["N", 5]', '["N", 0]', "has 0"),
        ('shape = ["N", 5]', 'shap = ["N", 5]', "lacks shape"),
        ('dtype = "int32"', 'dtype = "int64"', "int64"),
        ('fp32_nodes = ["norm"]', 'fp32_nodes = ["("]', "fp32_nodes"),
        ('labels = "labels"', 'labels = "classes"', "classes"),
        ('shape = [1, "C"]', 'shape = [2, "C"]', "differs"),
        ("first.outputs]\nfeatures", "first.outputs]\nother", "no earlier stage gives"),
        ("\nlabels = { dtype", "\nfeatures = { dtype", "two stages give|classes|unordered"),
        ("[stages.second]\nmeaning", "[stages.second]\nmeanings", "lacks meaning"),
    ],
)  # fmt: skip
def test_wrong_contracts_are_refused(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(RecipeError, match=message):
        parse_contract(GOOD.replace(old, new, 1))


@pytest.fixture
def contract() -> ModelContract:
    return parse_contract(GOOD)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5)), "float64"),
        (np.zeros((4, 5, 1), np.float32), r"\[4, 5, 1\]"),
        (np.zeros((4, 6), np.float32), r"\[4, 6\]"),
        (np.zeros((21, 5), np.float32), "0 to 20 rows"),
    ],
)
def test_arrays_that_break_the_contract(contract: ModelContract, array: np.ndarray, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(RecipeError, match=message):
        contract.check_array(contract.stages[0].tensor("rows"), array, {})


def test_one_axis_has_one_size(contract: ModelContract) -> None:
    with pytest.raises(RecipeError, match="N = 3"):
        contract.check_array(contract.stages[0].tensor("rows"), np.zeros((4, 5), np.float32), {"N": 3})
