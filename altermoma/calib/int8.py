"""From fp32 stage graphs and ranges to int8 graphs: TensorRT's and ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import onnx

from altermoma.calib.insert import ONNX_RUNTIME, Dialect, insert
from altermoma.calib.moves import move_as_int8
from altermoma.calib.observe import Watched
from altermoma.calib.placement import needed, place
from altermoma.calib.pointwise import rows_as_convolutions, shapes_of
from altermoma.calib.products import Product, find_products
from altermoma.calib.scales import Range
from altermoma.calib.segments import prepare
from altermoma.export.contract import ModelContract, StageContract


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage ready to be quantised: its prepared graph and everything in it that could be int8."""

    contract: StageContract
    graph: onnx.ModelProto
    products: tuple[Product, ...]

    @cached_property
    def shapes(self) -> dict[str, list[int | str | None] | None]:
        """Dimensions of what the products compute, by tensor name."""
        return shapes_of(self.graph, [item.result for item in self.products])

    @property
    def groups(self) -> tuple[str, ...]:
        """Layer groups with at least one product that may be int8, in the order of the graph."""
        return tuple(dict.fromkeys(item.group for item in self.products if not item.kept))

    def chosen(self, groups: frozenset[str]) -> list[Product]:
        return [item for item in self.products if not item.kept and item.group in groups]


def plan_stages(graphs: Mapping[str, onnx.ModelProto], contract: ModelContract) -> dict[str, StagePlan]:
    """Plans by stage name, in the order in which the stages run.

    Args:
        graphs: fp32 graphs of an export.
        contract: of the model.
    """
    plans = {}
    for stage in contract.stages:
        graph = prepare(graphs[stage.name])
        plans[stage.name] = StagePlan(contract=stage, graph=graph, products=tuple(find_products(graph, stage)))
    return plans


def all_groups(plans: Mapping[str, StagePlan]) -> tuple[str, ...]:
    return tuple(group for plan in plans.values() for group in plan.groups)


def chosen_groups(plans: Mapping[str, StagePlan], keeps: Callable[[str], bool]) -> frozenset[str]:
    """Groups that become int8: all but those that a recipe keeps."""
    return frozenset(group for group in all_groups(plans) if not keeps(group))


def watch(plans: Mapping[str, StagePlan], groups: frozenset[str]) -> list[Watched]:
    """What must be observed so that any part of these groups can be quantised for any runtime."""
    found = []
    for name, plan in plans.items():
        chosen = plan.chosen(groups)
        parts: list[Sequence[Product]] = [[item for item in chosen if item.group == group] for group in plan.groups]
        both = [place(plan.graph, part, results=results) for part in (chosen, *parts) for results in (False, True)]
        tensors = needed(both)
        found.append(Watched(name=name, graph=plan.graph, tensors=tuple(sorted(tensors))))
    return found


def quantised(
    plan: StagePlan, groups: frozenset[str], ranges: Mapping[str, Range], dialect: Dialect = ONNX_RUNTIME
) -> onnx.ModelProto:
    """The stage's graph with these groups in int8; the prepared graph itself where it has none of them."""
    chosen = plan.chosen(groups)
    placement = place(plan.graph, chosen, results=dialect.results)
    model = insert(plan.graph, chosen, placement, ranges, dialect)
    if dialect.results:
        rows_as_convolutions(model, plan.shapes)
        move_as_int8(model)
    return model


@dataclass(frozen=True, kw_only=True)
class Share:
    """How much of a model's multiply-adds is int8.

    Attributes:
        int8, whole: multiply-adds of one frame.
    """

    int8: int
    whole: int

    @property
    def part(self) -> float:
        return self.int8 / self.whole if self.whole else 0.0


def share_of(plan: StagePlan, groups: frozenset[str], rows: Mapping[str, int]) -> Share:
    """The int8 share of a stage's products by constant weights.

    Args:
        plan: of the stage.
        groups: that are int8.
        rows: rows of the results of those products whose rows change from frame to frame, by tensor name.
    """
    macs = {
        item.node: item.macs if item.macs is not None else item.row_macs * rows[item.result] for item in plan.products
    }
    chosen = {item.node for item in plan.chosen(groups)}
    return Share(int8=sum(n for node, n in macs.items() if node in chosen), whole=sum(macs.values()))
