"""Whatever kind of error: found, expected, and what to do."""

from __future__ import annotations

import pytest

from altermoma import errors
from altermoma.errors import AltermomaError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, AltermomaError)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_was_expected_and_what_to_do(kind: type[AltermomaError]) -> None:
    found, expected, remedy = str(kind("a thing")).splitlines()
    assert found == "a thing"
    assert expected.removeprefix("Expected: ") == kind.usually_expected != ""
    assert remedy.removeprefix("What to do: ") == kind.usual_remedy != ""
    assert kind is AltermomaError or kind.usual_remedy != AltermomaError.usual_remedy


def test_the_place_that_raises_it_knows_better() -> None:
    lines = str(errors.DataError("a thing", expected="another", remedy="do this")).splitlines()
    assert lines == ["a thing", "Expected: another", "What to do: do this"]
