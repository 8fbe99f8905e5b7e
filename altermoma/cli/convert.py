"""`altermoma convert`: checkpoints of mit-han-lab and mmdet3d to ours, and ours to mmdet3d."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from altermoma.cli.options import AT_FULL_SIZE, Mmdet3dConfigOption

if TYPE_CHECKING:
    from altermoma.checkpoints.adopt import Adopted


def convert(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors of ours, or a .pth of mit-han-lab or mmdet3d.")],
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    to: Annotated[
        Literal["altermoma", "mmdet3d"],
        typer.Option("--to", help="altermoma: weights and a recipe. mmdet3d: weights and a configuration to train."),
    ] = "altermoma",
    model: Annotated[
        str | None, typer.Option("--model", metavar="PRESET", help="What a .pth holds; a .safetensors says it itself.")
    ] = None,
    mmdet3d_config: Mmdet3dConfigOption = None,
    sweeps: Annotated[
        int | None, typer.Option(min=1, help="LiDAR sweeps per frame, where no configuration says it: 10 by default.")
    ] = None,
) -> None:
    """Convert a dense or pruned BEVFusion between programs, by parameter names, checking every name and shape."""
    from altermoma.checkpoints.adopt import open_checkpoint

    adopted = open_checkpoint(checkpoint, preset=model, mmdet3d_config=mmdet3d_config)
    _describe(checkpoint, adopted)
    merged = sweeps or adopted.sweeps or 10
    if to == "altermoma":
        _ours(adopted, out, merged, checkpoint.name)
        return
    from altermoma.checkpoints.mmdet3d.write import write_mmdet3d

    written = write_mmdet3d(adopted.model, out, sweeps=merged)
    print(f"{written.config}\n{written.weights}")
    if written.module is not None:
        print(f"{written.module}  (widths that mmdet3d's classes cannot be configured to)")


def _ours(adopted: Adopted, folder: Path, sweeps: int, source: str) -> None:
    from altermoma.checkpoints.adopt import save_adopted
    from altermoma.recipe import DataRecipe, Recipe, at_full_size
    from altermoma.storage import write_text

    weights = folder / "model.safetensors"
    save_adopted(weights, adopted, source=source)
    data = DataRecipe(sweeps=sweeps, repeat_key=adopted.repeat_key)
    recipe = Recipe(name=adopted.preset, model=adopted.preset, checkpoint=str(weights.resolve()), data=data)
    if adopted.foreign is not None:
        recipe = at_full_size(recipe)
        print(f"  {AT_FULL_SIZE}")
    write_text(folder / "recipe.toml", recipe.to_toml())
    print(f"{weights}\n{folder / 'recipe.toml'}")


def _describe(path: Path, adopted: Adopted) -> None:
    tensors = len(adopted.model.state_dict())
    print(f"{path.name}: {adopted.preset}, {tensors} tensors")
    if adopted.foreign is not None:
        found = adopted.foreign
        print(f"  names of {found.spelling}, sparse weights {found.layout}")
        if found.set_aside:
            print(f"  no weights, compared with the geometry or left out: {', '.join(found.set_aside)}")
