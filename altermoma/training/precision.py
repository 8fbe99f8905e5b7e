"""Mixed precision: products in sixteen bits, and the factor that keeps the gradients of fp16 from vanishing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from altermoma.errors import AltermomaError, RecipeError
from altermoma.models.devices import allow_tf32
from altermoma.recipe import TrainPrecision

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def mixed(device: torch.device, precision: TrainPrecision) -> AbstractContextManager[object]:
    """Inside, products on the device are computed in the sixteen bits of `precision`, if it has sixteen."""
    return torch.autocast(device.type, _TYPES[precision]) if precision in _TYPES else contextlib.nullcontext()


@contextlib.contextmanager
def tensor_cores(device: torch.device, precision: TrainPrecision) -> Iterator[None]:
    """Inside, products of float32 are rounded to TF32 where the recipe asks for it.

    Raises:
        RecipeError: TF32 without a GPU.
    """
    if precision != "tf32":
        yield
        return
    if device.type != "cuda":
        raise RecipeError(
            f"compute.precision = tf32 on {device.type}",
            expected="tf32 on an NVIDIA GPU",
            remedy="take fp32, or bf16",
        )
    allow_tf32(True)
    try:
        yield
    finally:
        allow_tf32(False)


@dataclass(kw_only=True)
class LossScale:
    """The factor on the loss in fp16, as torch.amp.GradScaler moves it.

    Attributes:
        value: a power of two, halved when a gradient overflows and doubled after GROW_AFTER steps without.
        good: steps since it was last changed.
    """

    value: float = 65536.0
    good: int = 0

    GROW_AFTER = 2000

    @staticmethod
    def of(precision: TrainPrecision) -> LossScale | None:
        """None where it is not needed: bf16 has the range of float32."""
        return LossScale() if precision == "fp16" else None

    def update(self, finite: bool) -> None:
        """Moves the factor after a step whose gradients were finite, or not.

        Raises:
            AltermomaError: they overflow whatever the factor.
        """
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good == self.GROW_AFTER:
            self.value, self.good = 2 * self.value, 0
        if self.value < 1:
            raise AltermomaError(
                "training diverged: losses or gradients are not finite, however small the loss is made for fp16",
                expected="finite losses and gradients",
                remedy="set compute.precision to bf16 or fp32; if that diverges too, lower finetune.lr",
            )
