"""Rank correlation against scipy, and the indicators of the analysis against the method's own."""

from __future__ import annotations

import torch
from scipy import stats

from altermoma.experiments.analysis import rank_correlations, spearman


def test_rank_correlation_is_scipys_ties_included() -> None:
    torch.manual_seed(0)
    first = torch.randint(0, 6, (200,)).double()
    second = first + torch.randint(0, 6, (200,))
    assert abs(spearman(first, second) - stats.spearmanr(first.numpy(), second.numpy()).statistic) < 1e-12


def test_correlations_join_layers_by_name() -> None:
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3.0, 4.0]])}
    same = {"b": torch.tensor([[7.0, 9.0]]), "a": torch.tensor([0.0, 5.0])}
    found = rank_correlations({"one": one, "same": same})
    assert found["one"]["same"] == 1.0
    assert found["same"]["one"] == 1.0
