"""Layers of a stage and how far they are from fp32, as text."""

from __future__ import annotations

import math

from altermoma.export.debug_precision import Diagnosis, LayerError

AROUND = 3
WORST = 8


def layer_table(found: Diagnosis) -> str:
    """The layers around the first that is off, or the worst ones where none is; `turned` choices below."""
    rows = _around(found) if found.first is not None else _worst(found)
    width = max((len(layer.node) for layer in rows), default=4)
    lines = [f"{'layer':<{width}}  {'operator':<12} {'difference':>10}  {'largest in fp32':>15}"]
    for layer in rows:
        off = "not finite" if math.isinf(layer.difference) else f"{layer.difference:.1e}"
        mark = "  <- first" if found.first is not None and layer.tensor == found.first.tensor else ""
        lines.append(f"{layer.node:<{width}}  {layer.op:<12} {off:>10}  {layer.magnitude:>15.3g}{mark}")
    lines.append(f"{len(rows)} of {len(found.layers)} layers shown; --out FILE keeps all")
    lines += [f"{name}: {share:.2%} of its choices are others than in fp32" for name, share in found.turned.items()]
    return "\n".join(lines)


def _around(found: Diagnosis) -> list[LayerError]:
    place = next(i for i, layer in enumerate(found.layers) if found.first and layer.tensor == found.first.tensor)
    return list(found.layers[max(0, place - AROUND) : place + AROUND + 1])


def _worst(found: Diagnosis) -> list[LayerError]:
    return sorted(found.layers, key=lambda layer: -layer.difference)[:WORST]
