"""The analysis as a page: gradients, maps, redundant layers and channels, correlations."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from altermoma.experiments.analysis import BackboneAnalysis, BranchMaps, LayerGradients
from altermoma.experiments.page import figure, page, rows_of
from altermoma.experiments.plot import Axes, bar_plot, line_plot
from altermoma.recipe import Partition

TITLES: dict[Partition, str] = {"camera": "Camera backbone", "lidar": "LiDAR backbone", "fusion": "Fusion and head"}
OTHER: dict[Partition, str] = {"camera": "LiDAR", "lidar": "camera"}
SCALE = 3


def analysis_page(
    title: str, backbones: Mapping[Partition, BackboneAnalysis], correlations: Mapping[str, Mapping[str, float]]
) -> str:
    """Args:
    title: heading.
    backbones: from `analysis.analyse`.
    correlations: from `analysis.rank_correlations`; empty leaves the section out.
    """
    sections = [
        "<p>Gradients are means of |dL/dw| over a layer's weights. Contribution and redundancy are shares of the "
        "backbone's DeCI and ReRI: a layer whose redundancy share exceeds its contribution share is what AlterMOMA "
        "takes for fusion-redundant.</p>"
    ]
    for partition, found in backbones.items():
        sections += _backbone(partition, found)
    if correlations:
        sections.append(f"<h2>Rank correlation of the methods' scores</h2>{_correlations(correlations)}")
    return page(title, sections)


def _backbone(partition: Partition, found: BackboneAnalysis) -> list[str]:
    other = OTHER[partition]
    numbers = [float(number) for number, _ in enumerate(found.layers, start=1)]
    gradients = line_plot(
        {
            "both branches": _log_line([layer.both for layer in found.layers]),
            f"{other} masked": _log_line([layer.alone for layer in found.layers]),
            "reactivated": _log_line([layer.reactivated for layer in found.layers]),
        },
        Axes(x="layer, from the input on", y="log10 of mean |gradient|", marks=numbers),
    )
    shares = bar_plot(
        {
            f"{number:g}": {"contribution": 100 * layer.contribution, "redundancy": 100 * layer.redundancy}
            for number, layer in zip(numbers, found.layers, strict=True)
        },
        "share of the backbone, %",
    )
    facts = (
        f"<p>DeCI and ReRI of the weights have a rank correlation of {found.rank_correlation:.2f}. Of the tenth of the "
        f"weights with the highest DeCI, {100 * found.outranked:.0f} % have an even higher share of ReRI: with "
        "beta = alpha the difference puts them below weights that do nothing.</p>"
    )
    channels = rows_of(
        ("channel", "contribution / mean", "redundancy / mean"),
        [(f"{c.group} [{c.channel}]", f"{c.contribution:.2f}", f"{c.redundancy:.2f}") for c in found.channels],
    )
    return [
        f"<h2>{TITLES[partition]}</h2>{facts}",
        f'<div class="figures">{figure(gradients, "Gradients with both branches, and with the other branch masked.")}'
        f"{figure(shares, 'Where contribution and redundancy lie.')}</div>",
        _layer_table(found.layers),
        f"<h2>{TITLES[partition]}: bird's-eye view</h2>{_maps(found.maps, other)}",
        f"<h2>{TITLES[partition]}: most redundant channels</h2>{channels}",
    ]


def _log_line(values: Sequence[float]) -> list[tuple[float, float]]:
    return [(float(number), math.log10(max(value, 1e-12))) for number, value in enumerate(values, start=1)]


def _layer_table(layers: Sequence[LayerGradients]) -> str:
    body = [
        (
            f"{number} {layer.name}",
            f"{layer.weights}",
            f"{layer.both:.2e}",
            f"{layer.alone:.2e}",
            f"{layer.reactivated:.2e}",
            f"{100 * layer.contribution:.1f} %",
            f"{100 * layer.redundancy:.1f} %",
        )
        for number, layer in enumerate(layers, start=1)
    ]
    head = ("layer", "weights", "|g| both", "|g| other masked", "|g| reactivated", "contribution", "redundancy")
    return rows_of(head, body, [layer.redundancy > 1.2 * layer.contribution for layer in layers])


def _maps(maps: BranchMaps, other: str) -> str:
    top = max(float(np.quantile(found, 0.995)) for found in (maps.before, maps.reactivated, maps.pruned)) or 1.0
    named = {
        "before": maps.before,
        f"reactivated, {other} masked": maps.reactivated,
        "after cutting, before fine-tuning": maps.pruned,
    }
    shown = "".join(
        f'<figure><img alt="{escape(name)}" src="{_png(found / top)}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, found in named.items()
    )
    return f'<div class="maps">{shown}</div>'


def _png(map_xy: NDArray[np.float32]) -> str:
    """A map of 0 to 1 as a picture, x up and y to the left as seen from above, in a data URL."""
    from PIL import Image

    shade = np.clip(map_xy[::-1, ::-1], 0.0, 1.0) ** 0.5
    stops = np.array([[10, 12, 40], [40, 70, 140], [60, 160, 150], [250, 220, 90]], dtype=np.float64)
    colours = np.stack([np.interp(shade, np.linspace(0, 1, len(stops)), stops[:, c]) for c in range(3)], axis=-1)
    stream = io.BytesIO()
    picture = Image.fromarray(colours.astype(np.uint8))
    picture.resize((picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _correlations(found: Mapping[str, Mapping[str, float]]) -> str:
    names = list(found)
    return rows_of(("", *names), [(a, *(f"{found[a][b]:.2f}" for b in names)) for a in names])
