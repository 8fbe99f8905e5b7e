"""`altermoma bench` on the hand-written bundle."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from tiny_bundle import content
from typer.testing import CliRunner

from altermoma.cli.app import app
from altermoma.deploy.bundle import write_bundle
from altermoma.errors import RecipeError
from altermoma.workflow.bundles import BenchPlan, bench_bundles, bundle_names


def bundle(folder: Path, gflops: float) -> Path:
    metrics = {"flops": {"total": gflops * 1e9}}
    return write_bundle(folder, dataclasses.replace(content(("fp32",)), metrics=metrics)).folder


def test_page_and_record(tmp_path: Path) -> None:
    dense, pruned = bundle(tmp_path / "dense", 4.0), bundle(tmp_path / "pruned", 2.0)
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["bench", str(dense), str(pruned), "--rounds", "3", "--out", str(out)])
    assert done.exit_code == 0, done.output
    record = json.loads((out / "latency.json").read_text())
    assert (record["dense"], record["gflops"]) == ("dense", {"dense": 4.0, "pruned": 2.0})
    assert set(record["variants"]) == {"dense", "pruned"}
    assert record["plan"]["rounds"] == record["rounds"] == 3
    times = record["variants"]["pruned"]["latency_ms"]
    assert 0 < times["camera"]["p50"] < times["frame"]["p50"]
    page = (out / "latency.md").read_text()
    assert page in done.output
    assert "| pruned |" in page


def test_bundles_of_one_name_are_told_apart(tmp_path: Path) -> None:
    first, second = bundle(tmp_path / "a" / "bundle", 1.0), bundle(tmp_path / "b" / "bundle", 1.0)
    assert bundle_names([first, second]) == ["a/bundle", "b/bundle"]
    with pytest.raises(RecipeError, match="each once"):
        bench_bundles([first, first], BenchPlan(rounds=1))
