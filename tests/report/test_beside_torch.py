"""Engines beside torch: ratios by hand, and what is said where something is missing."""

from __future__ import annotations

from typing import Any

import pytest

from altermoma.deploy.manifest import STAGES
from altermoma.report.beside_torch import beside_torch


def torch_times(frame: float, network: float) -> dict[str, Any]:
    return {"latency_ms": {"frame": {"p50": frame}, "network": {"p50": network}}}


@pytest.fixture
def torch() -> dict[str, Any]:
    return {
        "model": "tiny",
        "precision": "fp16",
        "torch_device": "Test GPU",
        "dense": "dense torch eager",
        "variants": {"dense torch eager": torch_times(100.0, 60.0), "dense torch.compile": torch_times(70.0, 30.0)},
    }


def engines(ms: float) -> dict[str, Any]:
    return {"steps": {f"run {stage}": {"execution_ms": {"p50": ms}} for stage in STAGES}}


@pytest.fixture
def result() -> dict[str, Any]:
    frames = {name: {"latency_ms": {"frame": {"p50": ms}}} for name, ms in (("a", 25.0), ("b", 10.0))}
    ways = {"a": "stage by stage", "b": "device"}
    return {"benchmarks": {"tiny": {"variants": frames, "ways": ways}}, "variants": {"a": engines(2.4), "b": {}}}


def rows(page: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in cells}


def test_ratios_are_against_the_first_of_torch(torch: dict[str, Any], result: dict[str, Any]) -> None:
    page = beside_torch(torch, result)
    found = rows(page)
    assert found["dense torch eager, fp16"] == ["host", "100.00", "1.00", "60.00", "1.00"]
    assert found["dense torch.compile, fp16"] == ["host", "70.00", "1.43", "30.00", "2.00"]
    assert found["engines a"] == ["host", "25.00", "4.00", "12.00", "5.00"]
    assert found["engines b"] == ["device", "10.00", "10.00", "", ""], "one whose stages were not all timed"
    assert "on Test GPU" in page
    assert "not in turn" in page


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"other": {}}, "there are some of other"),
        ({}, "none was timed"),
        ({"tiny": {"error": "no engine loads"}}, "no engine loads"),
    ],
)
def test_engines_that_are_not_there_are_told(torch: dict[str, Any], held: dict[str, Any], said: str) -> None:
    assert said in beside_torch(torch, {"benchmarks": held, "variants": {}})
    assert "engines of" not in beside_torch(torch, {})


def test_what_did_not_run_is_told(torch: dict[str, Any]) -> None:
    failed = {"dense torch.compile": "RuntimeError: no compiler"}
    assert "dense torch.compile did not run: RuntimeError: no compiler." in beside_torch(torch | {"failed": failed}, {})
