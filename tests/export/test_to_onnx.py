"""Small random modules: the graph equals torch at row counts other than those it was traced with."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from altermoma.errors import ExportError, RecipeError
from altermoma.export.contract import ModelContract, parse_contract
from altermoma.export.parity import open_session, run_session
from altermoma.export.to_onnx import export_stage
from altermoma.models.modes import eval_mode
from altermoma.models.stages import StageModule
from altermoma.ops.functional import gather_conv, rows_to_bev

CONTRACT = """
schema = 1
models = ["toy"]
[axes]
N = { min = 0, opt = 10, max = 50, meaning = "rows" }
M = { min = 0, opt = 10, max = 50, meaning = "rows after" }
[widths]
C = "channels"
[stages.toy]
meaning = "toy"
[stages.toy.inputs]
rows = { dtype = "float32", shape = ["N", 3], meaning = "rows", unit = "1" }
table = { dtype = "int32", shape = ["M", 8], meaning = "rows", unit = "index" }
bev_table = { dtype = "int32", shape = [12, 2], meaning = "rows after", unit = "index" }
[stages.toy.outputs]
bev = { dtype = "float32", shape = [1, "C", 3, 4], meaning = "map", unit = "1" }
last = { dtype = "float32", shape = ["M", 5], meaning = "rows after", unit = "1" }
"""


class Toy(StageModule):
    """A gather convolution with norm, its dense map, and a convolution with norm on it."""

    inputs = ("rows", "table", "bev_table")
    outputs = ("bev", "last")

    def __init__(self, frozen: str = "") -> None:
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(5, 2, 2, 2, 3))
        self.norm = nn.BatchNorm1d(5)
        self.conv = nn.Conv2d(10, 6, 3, padding=1, bias=False)
        self.norm_2d = nn.BatchNorm2d(6)
        self.dropout = nn.Dropout(0.5)
        self.frozen = frozen
        for norm in (self.norm, self.norm_2d):
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)

    def forward(self, rows: Tensor, table: Tensor, bev_table: Tensor) -> tuple[Tensor, Tensor]:
        last = torch.relu(self.norm(gather_conv(rows, [table], self.weight)))
        if self.frozen == "slice":
            last = last[: int(last.shape[0])]
        elif self.frozen == "reshape":
            last = last.reshape(int(last.shape[0]), 5)
        bev = rows_to_bev(last, bev_table, (3, 4), 1)
        return self.dropout(self.norm_2d(self.conv(bev))), last


@pytest.fixture
def contract() -> ModelContract:
    return parse_contract(CONTRACT)


def arrays(rows: int, after: int) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    rng = np.random.default_rng(rows)
    return {
        "rows": rng.normal(size=(rows, 3)).astype(np.float32),
        "table": rng.integers(0, rows + 1, (after, 8)).astype(np.int32),
        "bev_table": rng.integers(0, after + 1, (12, 2)).astype(np.int32),
    }


def test_graph_equals_torch_at_every_size(contract: ModelContract) -> None:
    module = Toy().train()
    model = export_stage(module, contract, "toy", arrays(7, 9))
    assert module.training
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("MatMul") == 1
    assert not {"BatchNormalization", "Dropout", "Shape", "Constant"} & set(operators)
    session = open_session(model)
    module.eval()
    for rows, after in ((7, 9), (20, 4), (1, 1), (0, 3), (0, 0)):
        given = arrays(rows, after)
        with torch.no_grad():
            wanted = module(*(torch.from_numpy(given[name]) for name in module.inputs))
        found = run_session(session, given)
        for name, tensor in zip(module.outputs, wanted, strict=True):
            np.testing.assert_allclose(found[name], tensor.numpy(), atol=1e-5)


def test_frozen_row_counts_are_refused(contract: ModelContract) -> None:
    """A count that Python read becomes a constant of the graph."""
    with pytest.raises(ExportError, match=r"last has shape \[9, 5\]"):
        export_stage(Toy(frozen="reshape"), contract, "toy", arrays(7, 9))


def test_frozen_row_counts_that_hide_stop_the_graph(contract: ModelContract) -> None:
    """Where shapes do not show it, another size does: hence parity is measured on a real frame."""
    session = open_session(export_stage(Toy(frozen="slice"), contract, "toy", arrays(7, 9)))
    assert run_session(session, arrays(20, 9))["last"].shape == (9, 5)
    with pytest.raises(ExportError, match=r"rows \[20, 3\], table \[30, 8\]"):
        run_session(session, arrays(20, 30))


def test_names_must_be_the_contracts(contract: ModelContract) -> None:
    module = Toy()
    module.outputs = ("last", "bev")
    with pytest.raises(ExportError, match="outputs last, bev"):
        export_stage(module, contract, "toy", arrays(7, 9))


def test_examples_must_fit_the_contract(contract: ModelContract) -> None:
    given = arrays(7, 9)
    given["table"] = given["table"].astype(np.int64)
    with pytest.raises(RecipeError, match="int64"):
        export_stage(Toy(), contract, "toy", given)


def test_unused_inputs_are_told(contract: ModelContract) -> None:
    class Forgetful(Toy):
        def forward(self, rows: Tensor, table: Tensor, bev_table: Tensor) -> tuple[Tensor, Tensor]:
            last = gather_conv(rows, [table], self.weight)
            return torch.zeros(1, 6, 3, 4) + last.sum(), last

    with pytest.raises(ExportError, match=r"rows, table"):
        export_stage(Forgetful(), contract, "toy", arrays(7, 9))


def test_what_torch_cannot_trace(contract: ModelContract) -> None:
    class Strange(Toy):
        def forward(self, rows: Tensor, table: Tensor, bev_table: Tensor) -> tuple[Tensor, Tensor]:
            return torch.special.bessel_j0(rows), rows

    with pytest.raises(ExportError, match="stage toy cannot be exported"):
        export_stage(Strange(), contract, "toy", arrays(7, 9))


def test_eval_mode_restores_every_part() -> None:
    module = Toy().train()
    module.norm.eval()
    with eval_mode(module):
        assert not any(part.training for part in module.modules())
    assert [part.training for part in (module, module.norm, module.norm_2d)] == [True, False, True]
