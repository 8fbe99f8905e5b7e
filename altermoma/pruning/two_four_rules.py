"""Which products take 2:4 weights: NVIDIA's rules on widths. Numbers alone, for models and for graphs alike."""

from __future__ import annotations

from typing import Literal, get_args

FOUR = 4
WidthRule = Literal["pattern", "aligned", "wide"]
"""How wide a product must be:

pattern: what the pattern itself needs, fours of input channels.
aligned: multiples of 16 inputs and 8 outputs, as NVIDIA's ASP and ModelOpt ask.
wide: also at least 512 inputs over a kernel of several positions, 4096 else, from where NVIDIA's V2XFusion prunes.
"""
WIDTH_RULES: tuple[WidthRule, ...] = get_args(WidthRule)

CHANNEL_STEP = 16
"""Widths that are multiples of this keep every layer behind them `aligned`."""

_INPUTS, _OUTPUTS = 16, 8
_WIDE_KERNEL, _WIDE_POINT = 512, 4096

FULL_PRECISION = "computes in fp32, which has no sparse kernels"
TRANSPOSED = "transposed convolutions have no sparse kernels"
GROUPED = "grouped convolutions have no sparse kernels"
LOOKED_UP = "its columns are looked up, not multiplied"


def too_narrow(rule: WidthRule, *, inputs: int, outputs: int, positions: int = 1) -> str:
    """Why a product stays dense; empty where it takes the pattern.

    Args:
        rule: how wide it must be.
        inputs: input channels of a convolution, rows of a matrix that is multiplied from the right.
        outputs: output channels, or the matrix's columns.
        positions: of the convolution's kernel.
    """
    if inputs % FOUR:
        return f"{inputs} inputs are no multiple of 4"
    if rule == "pattern":
        return ""
    if inputs % _INPUTS or outputs % _OUTPUTS:
        return f"{inputs} inputs and {outputs} outputs are no multiples of {_INPUTS} and {_OUTPUTS}"
    if rule == "aligned":
        return ""
    least = _WIDE_KERNEL if positions > 1 else _WIDE_POINT
    if inputs * positions < least:
        return f"{inputs * positions} products per output, fewer than {least}"
    return ""
