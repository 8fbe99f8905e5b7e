"""What was asked of engines beside what they are: precision and sparsity, by the inspector and the builder's log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from altermoma.deploy.manifest import EngineRecord, StageRecord
from altermoma.errors import EngineError

HEADER = ("stage", "asked", "found (layers)", "2:4 eligible", "2:4 picked", "runs on", "MB")


Stages = Mapping[str, Mapping[str, StageRecord]]
"""Graphs of a bundle: precision -> stage name -> record."""


def engine_rows(records: Sequence[EngineRecord], stages: Stages) -> list[dict[str, Any]]:
    """One JSON-able row per engine, for `summary.json`, the report and the terminal; `stages` are the bundle's."""
    return [
        {
            "stage": record.stage,
            "precision": record.precision,
            "numbers": stages[record.precision][record.stage].numbers,
            "sparsity": record.sparsity,
            "layers": record.layers,
            "found": dict(sorted(record.precisions.items())),
            "sparse_eligible": record.sparse_eligible,
            "sparse_picked": record.sparse_picked,
            "dla_core": record.dla_core,
            "dla_lacks": record.dla_lacks,
            "stripped": record.stripped,
            "megabytes": round(record.size / 1e6, 3),
            "tensorrt": record.tensorrt,
            "device": record.device,
        }
        for record in records
    ]


def engine_cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row as text, below `HEADER`."""
    found = ", ".join(f"{name} {count}" for name, count in row["found"].items())
    asked = (row.get("numbers") or row["precision"]) + (" 2:4" if row["sparsity"] == "2:4" else "")
    device = "GPU" if row["dla_core"] < 0 else f"DLA {row['dla_core']}"
    lacks = f", {row['dla_lacks']} layers on the GPU" if row["dla_lacks"] else ""
    sparse = (str(row["sparse_eligible"]), str(row["sparse_picked"])) if row["sparsity"] == "2:4" else ("", "")
    stripped = " (no weights)" if row["stripped"] else ""
    return (
        row["stage"],
        asked,
        f"{found} of {row['layers']}",
        *sparse,
        device + lacks,
        f"{row['megabytes']:.1f}{stripped}",
    )


def engine_table(records: Sequence[EngineRecord], stages: Stages) -> str:
    """Markdown; arguments as for `engine_rows`."""
    lines = [HEADER, tuple("---" for _ in HEADER), *(engine_cells(row) for row in engine_rows(records, stages))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def require_sparse(records: Sequence[EngineRecord]) -> None:
    """2:4 that nothing came of is an error: the engines are dense ones.

    TensorRT times sparse kernels against dense ones and keeps the faster, so single stages may well stay dense: the
    table shows them. Where no stage of a precision has a sparse kernel, what was asked for is not there.

    Raises:
        EngineError: no layer of any stage was eligible, or none was picked.
    """
    for precision in sorted({record.precision for record in records if record.sparsity == "2:4"}):
        asked = [record for record in records if record.precision == precision and record.sparsity == "2:4"]
        eligible = sum(record.sparse_eligible for record in asked)
        if sum(record.sparse_picked for record in asked):
            continue
        why = f"{eligible} layers are eligible, dense kernels were faster for all" if eligible else "none is eligible"
        raise EngineError(
            f"2:4 was asked for in {precision}, and TensorRT uses no sparse kernel: {why}",
            expected="sparse kernels in some stage",
            remedy="keep dense engines: --sparsity dense"
            if eligible
            else "export weights that are 2:4: --sparsity 2:4 of altermoma-export",
        )
