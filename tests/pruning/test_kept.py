"""What scoring leaves on disk: it comes back to the bit, and damage is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from altermoma.errors import PruningError
from altermoma.pruning.kept import Kept


def test_sums_come_back_to_the_bit_and_the_last_wins(tmp_path: Path) -> None:
    first = {"a": torch.rand(3, dtype=torch.float64), "b.weight": torch.rand(2, 4)}
    second = {name: tensor + 1 / 3 for name, tensor in first.items()}
    kept = Kept(tmp_path / "scores", every_s=0)
    assert kept.load("deci") == (0, {})
    kept.save("deci", 1, first)
    kept.save("deci", 2, second)
    done, found = Kept(tmp_path / "scores").load("deci")
    assert done == 2
    assert {name: tensor.dtype for name, tensor in found.items()} == {n: t.dtype for n, t in second.items()}
    assert all(torch.equal(tensor, second[name]) for name, tensor in found.items())
    assert [path.name for path in (tmp_path / "scores").iterdir()] == ["deci.safetensors"]
    assert kept.load("reri-camera") == (0, {})


def test_batches_that_take_no_time_are_not_all_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 4.0, 9.0, 16.0, 17.0])
    monkeypatch.setattr("altermoma.pruning.kept.time.monotonic", lambda: next(clock))
    kept, found = Kept(tmp_path, every_s=8.0), []
    for done in range(1, 6):
        kept.save("deci", done, {"a": torch.zeros(1)})
        found.append(kept.load("deci")[0])
    assert found == [1, 1, 3, 3, 5]


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Kept().save("deci", 1, {"a": torch.zeros(1)})
    assert Kept().load("deci") == (0, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-5]),
        lambda path: path.write_bytes(b""),
        lambda path: save_file({"a": torch.zeros(1)}, path),
        lambda path: save_file({"a": torch.zeros(1)}, path, metadata={"done": "many"}),
    ],
    ids=["truncated", "empty", "no count", "foreign count"],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], object]) -> None:
    kept = Kept(tmp_path, every_s=0)
    kept.save("deci", 1, {"a": torch.ones(4)})
    damage(tmp_path / "deci.safetensors")
    with pytest.raises(PruningError, match=r"deci\.safetensors is damaged") as caught:
        kept.load("deci")
    assert str(tmp_path) in caught.value.remedy
