"""What `altermoma tables write` leaves, of toys that are alike but for their names."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tiny_bundle import INPUTS, content

from altermoma.deploy.bundle import write_bundle
from altermoma.deploy.stage_tables import Served, WidthBundle, WidthSet, identity_of

SHARES = {"100": 1.0, "50": 0.5, "25": 0.2}
"""Made-up shares of every stage's FLOPs by folder."""


def write_toy_widths(folder: Path) -> Path:
    bundles = {name: write_bundle(folder / name, dataclasses.replace(content(), name=f"toy-{name}")) for name in SHARES}
    WidthSet(
        model="toy",
        served=Served(precision="fp16", sparsity="dense", target="generic"),
        flops=dict.fromkeys(INPUTS, 1e9),
        widths=tuple(
            WidthBundle(name=name, identity=identity_of(bundle.manifest), shares=dict.fromkeys(INPUTS, SHARES[name]))
            for name, bundle in bundles.items()
        ),
    ).write(folder)
    return folder
