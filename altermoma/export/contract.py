"""Stage contracts: what every graph of a model takes and gives, read from `export/*.toml`.

A contract names, for each tensor, its dtype, shape, meaning and unit. A dimension is a whole number, the name of a
dynamic axis (its rows change from frame to frame: min, opt and max become the engine's optimisation profile) or the
name of a width (fixed by the exported model: pruning changes it). The wheel carries the same files.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from altermoma import toml
from altermoma.deploy.matching import Unordered
from altermoma.errors import RecipeError

SCHEMA = 1
DType = Literal["float32", "int32"]
Dimension = int | str


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A dynamic axis. `minimum`, `optimum` and `maximum` are row counts of the optimisation profile."""

    name: str
    minimum: int
    optimum: int
    maximum: int
    meaning: str


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of a stage.

    Attributes:
        shape: whole numbers, names of dynamic axes, names of widths.
        island: the layers that touch this tensor, up to and including the nearest convolution or matrix product,
            compute in fp32 whatever the engine's precision. For coordinates, regressed boxes and scores.
        between: handed from stage to stage; it is float16 in an fp16 engine. All other floats stay float32.
    """

    name: str
    dtype: DType
    shape: tuple[Dimension, ...]
    meaning: str
    unit: str
    island: bool = False
    between: bool = False


@dataclass(frozen=True, kw_only=True)
class StageContract:
    """One stage.

    Attributes:
        fp32_nodes: patterns (searched in the graph's node names) of further layers that compute in fp32.
        unordered: set where the outputs list proposals in no fixed order.
    """

    name: str
    meaning: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    fp32_nodes: tuple[str, ...] = ()
    unordered: Unordered | None = None

    def tensor(self, name: str) -> TensorSpec:
        for spec in (*self.inputs, *self.outputs):
            if spec.name == name:
                return spec
        raise RecipeError(
            f"stage {self.name} has no tensor {name}",
            expected=", ".join(spec.name for spec in (*self.inputs, *self.outputs)),
        )


@dataclass(frozen=True, kw_only=True)
class ModelContract:
    """All stages of a model, in the order in which they run.

    Attributes:
        models: presets that the contract is of; they differ inside the stages only.
        model: the one of them that is meant.
    """

    models: tuple[str, ...]
    model: str
    axes: Mapping[str, Axis]
    widths: Mapping[str, str]
    stages: tuple[StageContract, ...]

    def stage(self, name: str) -> StageContract:
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise RecipeError(
            f"the contract of {self.model} has no stage {name}", expected=", ".join(s.name for s in self.stages)
        )

    def dynamic_axes(self, spec: TensorSpec) -> dict[int, str]:
        """Dimension number -> axis name, for the dynamic dimensions of `spec`."""
        return {i: d for i, d in enumerate(spec.shape) if isinstance(d, str) and d in self.axes}

    def check_array(self, spec: TensorSpec, array: np.ndarray[Any, Any], bindings: dict[str, int]) -> None:
        """Holds an array against its spec; `bindings` collects the sizes of named dimensions, which must agree.

        Raises:
            RecipeError: another dtype, rank or size, or more rows than the axis allows.
        """
        wanted = f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
        found = f"{spec.name} is {array.dtype} {list(array.shape)}"
        if str(array.dtype) != spec.dtype or array.ndim != len(spec.shape):
            raise RecipeError(found, expected=wanted)
        for size, dimension in zip(array.shape, spec.shape, strict=True):
            expected = bindings.setdefault(dimension, size) if isinstance(dimension, str) else dimension
            if size != expected:
                raise RecipeError(found, expected=f"{wanted} with {dimension} = {expected}")
            axis = self.axes.get(dimension) if isinstance(dimension, str) else None
            if axis is not None and not axis.minimum <= size <= axis.maximum:
                raise RecipeError(
                    found,
                    expected=f"{axis.minimum} to {axis.maximum} rows on axis {axis.name} ({axis.meaning})",
                    remedy=f"raise axes.{axis.name}.max in the stage contract, or feed fewer rows",
                )


def contract_folders() -> tuple[Path, ...]:
    """Where contracts are looked for: inside the installed wheel, then (editable installs) beside the package."""
    here = Path(__file__).resolve().parent
    return here / "contracts", here.parents[1] / "export"


def load_contract(model: str) -> ModelContract:
    """The contract that ships for a preset, by name.

    Raises:
        RecipeError: no such contract, or one that cannot be honoured.
    """
    known: set[str] = set()
    for folder in contract_folders():
        for path in sorted(folder.glob("*.toml")):
            contract = read_contract(path)
            if model in contract.models:
                return dataclasses.replace(contract, model=model)
            known |= set(contract.models)
    raise RecipeError(
        f"no stage contract for model {model!r}",
        expected="one of " + ", ".join(sorted(known)) if known else "contracts inside the package",
        remedy="choose one of these models, or write a contract that names it",
    )


def read_contract(path: Path) -> ModelContract:
    """Reads a contract file."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise RecipeError(f"cannot read stage contract {path}: {error.strerror}", expected="a TOML file") from error
    return parse_contract(text, str(path))


def parse_contract(text: str, source: str = "contract") -> ModelContract:
    """Reads a contract from TOML text; `source` names it in errors."""
    try:
        record = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise RecipeError(f"{source} is not valid TOML: {error}", expected="a TOML file") from error
    _check_keys(record, {"schema", "models", "axes", "widths", "stages"}, set(), source)
    if record["schema"] != SCHEMA:
        raise RecipeError(f"{source} has schema {record['schema']!r}", expected=f"schema = {SCHEMA}")
    axes = {name: _axis(name, item, f"{source}: axes.{name}") for name, item in record["axes"].items()}
    widths = record["widths"]
    clash = sorted(set(axes) & set(widths))
    if clash:
        raise RecipeError(f"{source}: {clash[0]} is both an axis and a width", expected="one or the other")
    names = {*axes, *widths}
    stages = tuple(
        _stage(name, item, names, f"{source}: stages.{name}") for name, item in dict(record["stages"]).items()
    )
    models = _models(record["models"], source)
    contract = ModelContract(models=models, model=models[0], axes=axes, widths=widths, stages=stages)
    _check_flow(contract, source)
    return contract


def _check_keys(record: Any, required: set[str], optional: set[str], where: str) -> None:
    if not isinstance(record, dict):
        raise RecipeError(f"{where} = {record!r}", expected="a table")
    missing, unknown = sorted(required - set(record)), sorted(set(record) - required - optional)
    if missing:
        raise RecipeError(f"{where} lacks {', '.join(missing)}", expected=f"keys {', '.join(sorted(required))}")
    if unknown:
        raise RecipeError(
            f"{where} has unknown key {', '.join(unknown)}", expected=f"keys {', '.join(sorted(required | optional))}"
        )


def _models(record: Any, source: str) -> tuple[str, ...]:
    if not isinstance(record, list) or not record or not all(isinstance(name, str) for name in record):
        raise RecipeError(f"{source}: models = {record!r}", expected="a list of preset names")
    return tuple(record)


def _axis(name: str, record: Any, where: str) -> Axis:
    _check_keys(record, {"min", "opt", "max", "meaning"}, set(), where)
    low, opt, high = record["min"], record["opt"], record["max"]
    if not all(type(n) is int for n in (low, opt, high)) or not 0 <= low <= opt <= high:
        raise RecipeError(
            f"{where}: min {low}, opt {opt}, max {high}", expected="whole numbers, 0 <= min <= opt <= max"
        )
    return Axis(name=name, minimum=low, optimum=opt, maximum=high, meaning=record["meaning"])


def _stage(name: str, record: Any, names: set[str], where: str) -> StageContract:
    _check_keys(record, {"meaning", "inputs", "outputs"}, {"fp32_nodes", "unordered"}, where)
    inputs = tuple(_tensor(key, item, names, f"{where}.inputs.{key}") for key, item in record["inputs"].items())
    outputs = tuple(_tensor(key, item, names, f"{where}.outputs.{key}") for key, item in record["outputs"].items())
    patterns = tuple(record.get("fp32_nodes", ()))
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise RecipeError(f"{where}.fp32_nodes: {pattern!r}: {error}", expected="a regular expression") from error
    return StageContract(
        name=name,
        meaning=record["meaning"],
        inputs=inputs,
        outputs=outputs,
        fp32_nodes=patterns,
        unordered=_unordered(record.get("unordered"), {spec.name for spec in outputs}, f"{where}.unordered"),
    )


def _unordered(record: Any, outputs: set[str], where: str) -> Unordered | None:
    if record is None:
        return None
    _check_keys(record, {"labels", "position", "score"}, set(), where)
    for key, name in record.items():
        if name not in outputs:
            raise RecipeError(f"{where}.{key} = {name!r}", expected="an output: " + ", ".join(sorted(outputs)))
    return Unordered(**record)


def _tensor(name: str, record: Any, names: set[str], where: str) -> TensorSpec:
    _check_keys(record, {"dtype", "shape", "meaning", "unit"}, {"island", "between"}, where)
    if record["dtype"] not in ("float32", "int32"):
        raise RecipeError(f"{where}.dtype = {record['dtype']!r}", expected="'float32' or 'int32'")
    for dimension in record["shape"]:
        if isinstance(dimension, str) and dimension not in names:
            raise RecipeError(
                f"{where}.shape names {dimension!r}", expected="a whole number or one of " + ", ".join(sorted(names))
            )
        if not isinstance(dimension, str) and (type(dimension) is not int or dimension < 1):
            raise RecipeError(f"{where}.shape has {dimension!r}", expected="whole numbers of at least 1, or names")
    flags = {key: bool(record.get(key, False)) for key in ("island", "between")}
    return TensorSpec(
        name=name,
        dtype=record["dtype"],
        shape=tuple(record["shape"]),
        meaning=record["meaning"],
        unit=record["unit"],
        **flags,
    )


def _check_flow(contract: ModelContract, source: str) -> None:
    """A tensor that one stage gives and another takes must be the same in both."""
    produced: dict[str, TensorSpec] = {}
    for stage in contract.stages:
        for spec in stage.inputs:
            given = produced.get(spec.name)
            if spec.between and given is None:
                raise RecipeError(
                    f"{source}: stage {stage.name} takes {spec.name}, which no earlier stage gives",
                    expected="stages in the order in which they run",
                )
            if given is not None and (given.dtype, given.shape, given.between) != (spec.dtype, spec.shape, True):
                raise RecipeError(
                    f"{source}: {spec.name} differs between the stage that gives it and stage {stage.name}",
                    expected="the same dtype and shape, and between = true in both",
                )
        for spec in stage.outputs:
            if spec.name in produced:
                raise RecipeError(f"{source}: two stages give {spec.name}", expected="every output once")
            produced[spec.name] = spec
