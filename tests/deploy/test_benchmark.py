"""Latency: order of runs, what is counted, and the arithmetic."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Mapping

import numpy as np
import pytest
from tiny_bundle import frame

from altermoma.deploy.benchmark import pinned_threads, pipeline_variant, realised_share, run_benchmark, summary
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.pipeline import PARTS, Pipeline
from altermoma.errors import RecipeError
from altermoma.frames import Frame


def test_variants_are_interleaved_and_warmup_is_not_counted() -> None:
    calls: list[tuple[str, str]] = []

    def variant(name: str) -> object:
        def run(of: Frame) -> Mapping[str, float] | None:
            calls.append((name, of.token))
            return {"camera": 1.0 if len(calls) <= 6 else 2.0} if name == "a" else None

        return run

    frames = [frame(0), frame(1)]
    result = run_benchmark(
        {"a": variant("a"), "b": variant("b"), "c": variant("c")},  # type: ignore[dict-item]
        frames,
        rounds=3,
        warmup=1,
    )
    assert len(calls) == 3 * 2 * 4
    for turn in range(8):
        names, tokens = zip(*calls[3 * turn : 3 * turn + 3], strict=True)
        assert sorted(names) == ["a", "b", "c"]
        assert set(tokens) == {f"frame{turn % 2}"}
    assert {calls[3 * turn][0] for turn in range(8)} == {"a", "b", "c"}, "the first place rotates"
    assert len(result.samples["a"]["frame"]) == 6
    np.testing.assert_array_equal(result.samples["a"]["camera"], 2.0)
    assert set(result.samples["b"]) == {"frame", "processor"}


def test_frame_time_is_wall_clock() -> None:
    def sleeper(_: Frame) -> None:
        time.sleep(0.02)

    latency = run_benchmark({"sleep": sleeper}, [frame(0)], rounds=3).latency_ms("sleep")["frame"]
    assert 20.0 <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]


def test_pipeline_variant_reports_every_part(bundle: Bundle) -> None:
    variants = {p: pipeline_variant(Pipeline.from_bundle(bundle, precision=p)) for p in ("fp32", "fp16")}
    result = run_benchmark(variants, [frame(0), frame(1)], rounds=2)
    record = json.loads(json.dumps(result.to_dict()))
    parts = record["variants"]["fp32"]["latency_ms"]
    assert set(parts) == {*PARTS, "frame", "processor"}
    assert sum(parts[p]["mean"] for p in PARTS) <= parts["frame"]["mean"]
    assert record["conditions"]["threads"] == 1
    table = result.to_markdown()
    assert table.splitlines()[0] == "| ms (p50 / p90 / p99 / max) | fp32 | fp16 |"
    assert [line.split(" | ")[0] for line in table.splitlines()[2:]] == [
        f"| {p}" for p in (*PARTS, "frame", "processor")
    ]


def test_percentiles() -> None:
    values = summary(np.arange(1.0, 102.0))
    assert values == {"p50": 51.0, "p90": 91.0, "p99": 100.0, "max": 101.0, "mean": 51.0}


def test_realised_share_of_the_paper() -> None:
    """Tables 5 and 9: 124.04 ms dense, 106.39 and 87.46 ms after removing 31.2 and 56.7 % of 610.66 GFLOPs."""
    assert realised_share(124.04, 106.39, 1 - 420.13 / 610.66) == pytest.approx(0.456, abs=1e-3)
    assert realised_share(124.04, 87.46, 1 - 264.42 / 610.66) == pytest.approx(0.520, abs=1e-3)
    assert realised_share(100.0, 50.0, 0.5) == pytest.approx(1.0)
    with pytest.raises(RecipeError):
        realised_share(100.0, 90.0, 0.0)


class Waiting(threading.Thread):
    """A thread that was there before, or is born inside, and lives on."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.up, self.end = threading.Event(), threading.Event()
        self.start()
        assert self.up.wait(10)

    def run(self) -> None:
        self.up.set()
        self.end.wait(60)

    @property
    def cpus(self) -> set[int]:
        assert self.native_id is not None
        return os.sched_getaffinity(self.native_id)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinities on this system")
def test_every_thread_is_pinned_and_set_free_again() -> None:
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one CPU")
    old, narrow = Waiting(), Waiting()
    assert narrow.native_id is not None
    os.sched_setaffinity(narrow.native_id, {min(allowed)})
    with contextlib.suppress(ValueError), pinned_threads(1):
        pinned = os.sched_getaffinity(0)
        born = Waiting()
        assert len(pinned) == 1
        assert old.cpus == narrow.cpus == born.cpus == pinned
        ended = Waiting()
        ended.end.set()
        ended.join()
        raise ValueError("a variant that fails")
    assert os.sched_getaffinity(0) == old.cpus == born.cpus == allowed
    assert narrow.cpus == {min(allowed)}, "a thread that was bound already is bound as before"
    for thread in (old, narrow, born):
        thread.end.set()


@pytest.mark.parametrize("given", [None, "3"])
def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch, given: str | None) -> None:
    if given is None:
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    else:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    with pinned_threads(2):
        assert os.environ["OMP_NUM_THREADS"] == (given or "2")
    assert os.environ.get("OMP_NUM_THREADS") == given


def test_nothing_to_run_is_an_error() -> None:
    with pytest.raises(RecipeError, match="0 variants"):
        run_benchmark({}, [frame(0)])
