"""Every error a user can cause. A message says what was found, what was expected and what to do."""

from __future__ import annotations


class AltermomaError(Exception):
    """Base of all errors raised on purpose.

    Args:
        found: what the program met, with the offending name or value.
        expected: what would have been right.
        remedy: what the user can do now.
    """

    exit_code = 1

    def __init__(self, found: str, *, expected: str = "", remedy: str = "") -> None:
        self.found, self.expected, self.remedy = found, expected, remedy
        lines = [found]
        if expected:
            lines.append(f"Expected: {expected}")
        if remedy:
            lines.append(f"What to do: {remedy}")
        super().__init__("\n".join(lines))


class RecipeError(AltermomaError):
    """A recipe, option or stage contract that cannot be honoured."""

    exit_code = 2


class UnsupportedError(AltermomaError):
    """Something asked for that this version does not offer."""

    exit_code = 2


class DataError(AltermomaError):
    """A data set, sensor file or calibration that is missing, truncated or inconsistent."""


class CheckpointError(AltermomaError):
    """Weights that are corrupt, foreign or of another model."""


class PruningError(AltermomaError):
    """A score, budget or channel group that cannot be used."""


class ExportError(AltermomaError):
    """A graph that could not be exported, linted or matched against torch."""


class BundleError(AltermomaError):
    """A bundle that is incomplete, altered or of another schema."""


class EngineError(AltermomaError):
    """An engine that could not be built, or is not what was asked for."""

    exit_code = 3


class StorageError(AltermomaError):
    """A full disk, a read-only folder or a file that could not be written."""
