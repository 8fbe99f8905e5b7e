"""The latency page: ratios against the dense bundle, R within one runtime, beside the paper's."""

from __future__ import annotations

from typing import Any

import pytest

from altermoma.report.latency import latency_markdown


def times(frame: float, processor: float) -> dict[str, Any]:
    return {
        "latency_ms": {
            part: {"p50": ms, "p90": ms, "p99": 1.5 * ms, "max": 2 * ms, "mean": ms}
            for part, ms in (("frame", frame), ("processor", processor))
        }
    }


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "rounds": 7,
        "warmup": 2,
        "points": 1234,
        "conditions": {"processor": "Some CPU", "threads": 1, "cpus": 2, "versions": {"numpy": "1.26"}},
        "markdown": "| ms | dense |\n",
        "gpu": {"power_w": {"min": 90.0, "median": 300.4, "max": 350.0}},
        "dense": "dense",
        "bases": {"pruned torch eager": "dense torch eager"},
        "gflops": {"dense": 800.0, "pruned": 400.0, "pruned torch eager": 400.0, "dense torch eager": 800.0},
        "variants": {
            "dense": times(100.0, 50.0),
            "pruned": times(60.0, 40.0),
            "dense torch eager": times(400.0, 400.0),
            "pruned torch eager": times(300.0, 200.0),
            "unknown": times(80.0, 80.0),
        },
    }


def row(page: str, name: str) -> list[str]:
    line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.split("|")[2:-1]]


def test_ratios(record: dict[str, Any]) -> None:
    page = latency_markdown(record)
    assert row(page, "dense") == ["100.0", "1.000", "1.000", "1.000", "", "", "1.50"]
    # 40 % of the time for half of the FLOPs; a fifth of the processor's.
    assert row(page, "pruned") == ["60.0", "0.600", "0.800", "0.500", "0.80", "0.40", "1.50"]
    assert row(page, "pruned torch eager") == ["300.0", "3.000", "4.000", "0.500", "0.50", "1.00", "1.50"]
    assert row(page, "unknown") == ["80.0", "0.800", "1.600", "", "", "", "1.50"]
    assert row(page, "paper, AlterMOMA 50 %") == ["", "0.705", "", "0.433", "0.52", "", ""]


def test_conditions_are_told(record: dict[str, Any]) -> None:
    page = latency_markdown(record)
    assert "7 rounds after 2 of warm-up" in page
    assert "1234 points; Some CPU, kept on 1 of 2 CPUs" in page
    assert row(page, "power_w") == ["90", "300", "350"]
    assert "GPU meanwhile" not in latency_markdown({**record, "gpu": {}})


def test_a_bundle_alone_has_no_ratios(record: dict[str, Any]) -> None:
    """It may be a pruned one, which is no yardstick of itself."""
    page = latency_markdown({**record, "variants": {"pruned": record["variants"]["pruned"]}, "dense": "pruned"})
    assert "1234 points" in page
    assert "/ dense" not in page
