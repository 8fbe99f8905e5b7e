"""From a model, dense or pruned, to one whose wide enough weights are 2:4: order channels, choose masks, zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from altermoma.progress import say
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.two_four import Masks, claim, kept_magnitude, two_four_masks, weights_of
from altermoma.pruning.two_four_permute import find_orders, moved, permuted
from altermoma.pruning.two_four_rules import WidthRule
from altermoma.pruning.two_four_search import WORK
from altermoma.pruning.unstructured import apply_masks

ModelT = TypeVar("ModelT", bound=nn.Module)


@dataclass(frozen=True, kw_only=True)
class TwoFourResult(Generic[ModelT]):
    """A 2:4 model and how it came about.

    Attributes:
        model: new, with zeros where weights went; not fine-tuned yet.
        masks: of the weights that hold the pattern.
        orders: channels of each group in their new order; a group that is not named, or none, stayed.
        rule: how wide a product had to be.
        kept_before, kept_after: share of the masked weights' magnitude that stays, as the channels were and reordered.
    """

    model: ModelT
    masks: Masks
    orders: dict[str, Tensor]
    rule: WidthRule
    kept_before: float
    kept_after: float

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint's metadata, under "sparsity"."""
        orders = {name: self.orders[name].tolist() for name in moved(self.orders)}
        kept = {"kept_before": self.kept_before, "kept_after": self.kept_after}
        return {**claim(self.model, self.masks, self.rule), **kept, "orders": orders}


def prune_two_four(model: ModelT, rule: WidthRule, *, permute: bool = True, work: int = WORK) -> TwoFourResult[ModelT]:
    """Makes every weight that is wide enough 2:4; `model` is unchanged.

    Args:
        model: a camera-LiDAR detector (see `groups.fusion_groups`).
        rule: how wide a product must be (`two_four_rules`).
        permute: reorder channels first, so that more magnitude stays.
        work: limit of each group's search.

    Raises:
        PruningError: no weight is wide enough.
    """
    masks = two_four_masks(model, rule)
    before = kept_magnitude(model, masks)
    groups = fusion_groups(model)
    dims = {weight.name: weight.dim for weight in weights_of(model, rule) if not weight.obstacle}
    orders = find_orders(model, groups, dims, work=work)[0] if permute else {}
    reordered = permuted(model, groups, orders)
    masks = two_four_masks(reordered, rule) if permute else masks
    after = kept_magnitude(reordered, masks)
    apply_masks(reordered, masks)
    say(
        f"2:4 in {len(masks)} weights: {after:.1%} of their magnitude stays"
        + (f", {before:.1%} before channels were reordered" if permute else "")
    )
    return TwoFourResult(model=reordered, masks=masks, orders=orders, rule=rule, kept_before=before, kept_after=after)
