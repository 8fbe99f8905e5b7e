"""`altermoma report`: finish a run and write its page again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of an `altermoma-export` run.")]) -> None:
    """Do what is left of a run and write `summary.json` and `report.html` again. Steps already done are kept."""
    from altermoma.workflow import oneshot
    from altermoma.workflow.runs import recipe_of

    oneshot.run(recipe_of(run), run, same_only=True)
