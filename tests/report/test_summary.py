"""The summary's schema: what is written is what docs/summary.md says, and comes back as it was."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from made_summary import make_summary
from rich.console import Console

from altermoma.errors import StorageError
from altermoma.report import summary as schema
from altermoma.report.summary import Summary, graph_p50, realised
from altermoma.report.table import print_summary

DOCS = Path(__file__).parents[2] / "docs" / "summary.md"


def documented(section: str) -> set[str]:
    """Names in the first column of the tables of one section of the document."""
    text = DOCS.read_text(encoding="utf-8")
    parts = dict(re.findall(r"^#+ ([^\n]+)\n(.*?)(?=^#+ |\Z)", text, flags=re.MULTILINE | re.DOTALL))
    rows = re.findall(r"^\| (`[^|]+) \|", parts[section], flags=re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


@pytest.mark.parametrize(
    ("section", "record"),
    [("`summary.json`", schema.Summary), ("Variants", schema.Variant), ("Parity", schema.Parity)],
)
def test_every_key_is_documented_and_every_documented_key_exists(section: str, record: type) -> None:
    assert documented(section) == {field.name for field in dataclasses.fields(record)}


def test_a_summary_comes_back_as_it_was_written(tmp_path: Path) -> None:
    written = make_summary()
    written.write(tmp_path / "summary.json")
    assert Summary.read(tmp_path / "summary.json") == written


def test_the_keys_that_programs_rely_on(tmp_path: Path) -> None:
    make_summary().write(tmp_path / "summary.json")
    record = json.loads((tmp_path / "summary.json").read_text())
    top = ("variants", "flops_reduction", "realised_share", "parity", "engines", "versions", "seconds")
    assert set(top) | {"peak_memory_mib"} <= set(record)
    for name in ("dense", "pruned", "onnxruntime-fp32"):
        found = record["variants"][name]
        assert {"mAP", "NDS", "gflops", "params", "latency_ms"} <= set(found)
        assert set(found["latency_ms"]["frame"]) == {"p50", "p90", "p99"}
        assert set(found["latency_ms"]["camera"]) == {"p50", "p90", "p99"}
    assert record["variants"]["onnxruntime-fp16"]["latency_ms"] is None


def _without(record: dict[str, Any]) -> None:
    del record["variants"]["dense"]["mAP"]


def _foreign(record: dict[str, Any]) -> None:
    record["surprise"] = 1


def _newer(record: dict[str, Any]) -> None:
    record["schema"] = 99


@pytest.mark.parametrize("damage", [_without, _foreign, _newer])
def test_another_schema_is_refused(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "summary.json"
    make_summary().write(path)
    record = json.loads(path.read_text())
    damage(record)
    path.write_text(json.dumps(record))
    with pytest.raises(StorageError, match=re.escape(str(path))):
        Summary.read(path)


def test_realised_share_of_the_paper() -> None:
    # Table 5: 610.66 -> 264.42 GFLOPs, 124.04 -> 87.46 ms; the design notes call it 0.52.
    assert realised(124.04, 87.46, 1 - 264.42 / 610.66) == pytest.approx(0.52, abs=0.005)
    assert realised(10.0, 10.0, 0.0) is None


def test_graphs_are_the_network_without_the_host() -> None:
    latency = make_summary().variants["pruned"].latency_ms
    assert latency is not None
    assert graph_p50(latency) == pytest.approx(5 * 24.0)


def test_the_table_fits_a_terminal_and_shows_every_variant() -> None:
    summary = make_summary()
    console = Console(width=80, record=True, file=io.StringIO())
    print_summary(summary, console)
    text = console.export_text()
    assert all(variant.title in text for variant in summary.variants.values())
    assert "…" not in text
    assert "53.11" in text
    assert "engines: not built here" in text
    assert summary.engines.command in text
