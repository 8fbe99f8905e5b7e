"""Weights that stay at zero while a network is trained: unstructured masks and 2:4 patterns."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from altermoma.errors import PruningError


@dataclass(frozen=True, kw_only=True)
class WeightMasks:
    """Masks of a model's parameters on their device.

    Attributes:
        gone: parameter name to bool of its shape, True where the weight is zero.
    """

    gone: Mapping[str, Tensor]

    @staticmethod
    def of(model: nn.Module, masks: Mapping[str, Tensor] | None) -> WeightMasks:
        """Takes over masks that are True where a weight stays; None masks nothing.

        Raises:
            PruningError: a mask of no parameter, of another shape, or not boolean.
        """
        parameters = dict(model.named_parameters())
        for name, mask in (masks or {}).items():
            if name not in parameters:
                raise PruningError(
                    f"a mask of {name}, which is no parameter of this model",
                    expected="masks of the model that is trained",
                    remedy="make the masks from the same weights: a pruned model has other shapes, not other names",
                )
            if mask.dtype != torch.bool or mask.shape != parameters[name].shape:
                raise PruningError(
                    f"a mask of {name} with shape {list(mask.shape)} and type {mask.dtype}",
                    expected=f"shape {list(parameters[name].shape)} and type {torch.bool}",
                    remedy="make the masks from the weights that are trained",
                )
        return WeightMasks(gone={name: ~mask.to(parameters[name].device) for name, mask in (masks or {}).items()})

    @torch.no_grad()
    def on_weights(self, model: nn.Module) -> None:
        """Sets the masked weights to zero."""
        for name, gone in self.gone.items():
            model.get_parameter(name).masked_fill_(gone, 0.0)

    @torch.no_grad()
    def on_gradients(self, model: nn.Module) -> None:
        """Sets their gradients to zero, so that clipping and momentum are those of the weights that are left."""
        for name, gone in self.gone.items():
            gradient = model.get_parameter(name).grad
            if gradient is not None:
                gradient.masked_fill_(gone, 0.0)

    @torch.no_grad()
    def on_tensors(self, tensors: MutableMapping[str, Tensor]) -> None:
        """Sets the masked entries of a state dict to zero."""
        for name, gone in self.gone.items():
            tensors[name].masked_fill_(gone, 0.0)
