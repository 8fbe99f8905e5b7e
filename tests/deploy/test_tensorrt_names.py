"""Every name of TensorRT that the code spells out, held against the names of eight released versions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorrt_double import VERSIONS, read_api

import altermoma

PACKAGE = Path(altermoma.__file__).parent

GUARDED = {
    "BuilderFlag.FP16": "only below 10: networks are weakly typed there",
    "BuilderFlag.INT8": "only below 10",
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": "only below 10",
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS": "only below 10",
}
"""Names that some versions lack, and why they are not asked for there."""

pytestmark = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


def spelt(path: Path) -> Iterator[str]:
    """`A` and `A.B` wherever the code says `trt.A` or `trt.A.B`, also through a local name (`flags = trt.A`)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for scope in ast.walk(tree):
        if not isinstance(scope, ast.FunctionDef):
            continue
        local = {
            target.id: node.value.attr
            for node in ast.walk(scope)
            if isinstance(node, ast.Assign) and _of_module(node.value)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(scope):
            if not isinstance(node, ast.Attribute):
                continue
            if _of_module(node):
                yield node.attr
            elif _of_module(node.value):
                yield f"{node.value.attr}.{node.attr}"
            elif isinstance(node.value, ast.Name) and node.value.id in local:
                yield f"{local[node.value.id]}.{node.attr}"


def _of_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trt"


def names(version: str) -> set[str]:
    api = read_api(version)
    found = {"__version__", *api["enums"], *api["classes"], *api.get("functions", ())}
    found |= {f"{enum}.{name}" for enum, members in api["enums"].items() for name in members}
    for owner, record in api["classes"].items():
        parts = (*record["methods"], *record.get("props", {}), *record.get("nested", {}), *record.get("attrs", {}))
        found |= {f"{owner}.{part}" for part in parts}
    return found


def everything_spelt() -> dict[str, set[str]]:
    """Name -> files that say it."""
    found: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in spelt(path):
            found.setdefault(name, set()).add(path.name)
    return found


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_spelt_out_exists_in_every_version(version: str) -> None:
    known, said = names(version), everything_spelt()
    assert {"Builder", "BuilderFlag.SPARSE_WEIGHTS", "Runtime", "ILogger.Severity", "DeviceType.DLA"} <= set(said)
    missing = {name: files for name, files in said.items() if name not in known and name not in GUARDED}
    assert missing == {}


def test_exceptions_are_needed() -> None:
    said = everything_spelt()
    for name in GUARDED:
        assert name in said
        assert any(name not in names(version) for version in VERSIONS)


def looked_up(path: Path) -> Iterator[str]:
    """Names given as strings to `member`, `required` and the like, on TensorRT's objects."""
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in {"member", "required"}:
            yield from (a.value for a in call.args[1:2] if isinstance(a, ast.Constant) and isinstance(a.value, str))


def test_what_is_looked_up_by_string_exists_somewhere() -> None:
    """Strings are what no type checker sees: one that no version has is a slip of the pen."""
    parts = [{part for name in names(version) for part in name.split(".")} for version in VERSIONS]
    asked = {name for path in PACKAGE.rglob("*.py") for name in looked_up(path)}
    assert {"IProgressMonitor", "OnnxParserRefitter", "STRIP_PLAN", "HardwareCompatibilityLevel"} <= asked
    for name in asked:
        assert any(name in part for part in parts), name
