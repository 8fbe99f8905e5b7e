"""Every error a user can cause. A message says what was found, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Callable


class AltermomaError(Exception):
    """Base of all errors raised on purpose.

    What a kind of error has in common is said by its class; where more is known, the place that raises it says so.

    Args:
        found: what the program met, with the offending name or value.
        expected: what would have been right.
        remedy: what the user can do now.
    """

    exit_code = 1
    usually_expected = "a run without this"
    usual_remedy = "report it with the command that was given"

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found = found
        self.expected = expected or self.usually_expected
        self.remedy = remedy or self.usual_remedy
        super().__init__(f"{found}\nExpected: {self.expected}\nWhat to do: {self.remedy}")

    def __reduce__(self) -> tuple[Callable[..., AltermomaError], tuple[object, ...]]:
        return _from_process, (type(self), self.found, self.expected, self.remedy)


def _from_process(kind: type[AltermomaError], found: str, expected: str, remedy: str) -> AltermomaError:
    """An error as another process sent it."""
    return kind(found, expected=expected, remedy=remedy)


class RecipeError(AltermomaError):
    """A recipe, option or stage contract that cannot be honoured."""

    exit_code = 2
    usually_expected = "a value that can be honoured"
    usual_remedy = "change it in the recipe, option or contract; left out, an option takes its default"


class UnsupportedError(AltermomaError):
    """Something asked for that this version does not offer."""

    exit_code = 2
    usually_expected = "something that this version offers"
    usual_remedy = "`--help` lists what there is"


class DataError(AltermomaError):
    """A data set, sensor file or calibration that is missing, truncated or inconsistent."""

    usually_expected = "a whole nuScenes data set"
    usual_remedy = "copy the files again, or leave the scene out of the split"


class CheckpointError(AltermomaError):
    """Weights that are corrupt, foreign or of another model."""

    usually_expected = "a checkpoint written by altermoma"
    usual_remedy = "name another one with --checkpoint"


class PruningError(AltermomaError):
    """A score, budget or channel group that cannot be used."""

    usually_expected = "a model whose channels can be told apart and removed"
    usual_remedy = "if the recipe's [prune] asks for nothing unusual, report it with the command that was given"


class ExportError(AltermomaError):
    """A graph that could not be exported, linted or matched against torch."""

    usually_expected = "a graph that is valid and answers as torch does"
    usual_remedy = "export fp32 to see whether the precision is to blame, and report it with the command that was given"


class BundleError(AltermomaError):
    """A bundle that is incomplete, altered or of another schema."""

    usually_expected = "a whole bundle, as it was written"
    usual_remedy = "copy the bundle again, or export it again"


class EngineError(AltermomaError):
    """An engine that could not be built, or is not what was asked for."""

    exit_code = 3
    usually_expected = "an engine that builds, loads and runs on this machine"
    usual_remedy = "build the engines again on this machine: altermoma build BUNDLE"


class StorageError(AltermomaError):
    """A full disk, a read-only folder or a file that could not be written."""

    usually_expected = "files as they were written, in a place of this run alone"
    usual_remedy = "check the path; a damaged file of a run may be deleted, and the command given again"
