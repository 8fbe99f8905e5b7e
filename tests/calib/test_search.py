"""The search against a brute force over all parts of a made-up model whose harms are known."""

from __future__ import annotations

import itertools
from typing import cast

import pytest

from altermoma.calib.search import search
from altermoma.calib.sensitivity import GroupHarm
from altermoma.calib.trials import Trials
from altermoma.errors import ExportError

HARM = {"a": 0.5, "b": 0.02, "c": 0.2, "d": 0.0, "e": 0.09}
MACS = {"a": 50, "b": 40, "c": 30, "d": 20, "e": 10}


class Known:
    """A model whose groups each cost their points, whatever the others do."""

    def __init__(self) -> None:
        self.asked = 0

    def map_of(self, groups: frozenset[str]) -> float:
        self.asked += 1
        return 0.8 - sum(HARM[group] for group in groups) / 100


def ranking() -> list[GroupHarm]:
    harms = [GroupHarm(group=g, macs=MACS[g], signal_db=20.0, alone=h, regained=h) for g, h in HARM.items()]
    return sorted(harms, key=lambda harm: -harm.alone)


@pytest.mark.parametrize("budget", [0.0, 0.05, 0.1, 0.3, 0.35, 0.9])
def test_nothing_more_could_be_int8_within_the_budget(budget: float) -> None:
    known = Known()
    found = search(cast(Trials, known), ranking(), budget)
    assert found.drop <= budget + 1e-9
    for name in set(HARM) - found.groups:
        assert 100 * (0.8 - known.map_of(found.groups | {name})) > budget
    best = max(
        sum(MACS[g] for g in part)
        for size in range(6)
        for part in itertools.combinations(HARM, size)
        if sum(HARM[g] for g in part) <= budget + 1e-9
    )
    assert sum(MACS[g] for g in found.groups) >= 0.6 * best
    assert set(found.left_out) == set(HARM) - found.groups


def test_a_model_that_loses_nothing_is_int8_as_a_whole_after_one_trial() -> None:
    known = Known()
    found = search(cast(Trials, known), ranking(), 5.0)
    assert found.groups == frozenset(HARM)
    assert known.asked <= 3


def test_a_budget_that_nothing_can_keep_is_an_error() -> None:
    class Hopeless(Known):
        def map_of(self, groups: frozenset[str]) -> float:
            return 0.8 - 0.01 * len(groups)

    with pytest.raises(ExportError, match=r"no layer group can be int8 within 0\.1 points"):
        search(cast(Trials, Hopeless()), ranking(), 0.1)
