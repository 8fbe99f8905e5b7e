"""The whole one-shot on a tiny data set with random weights: everything runs, nothing means anything."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from altermoma.checkpoints.io import save_checkpoint
from altermoma.deploy import Pipeline
from altermoma.deploy.bundle import Bundle
from altermoma.deploy.self_check import check_bundle
from altermoma.frames import Boxes
from altermoma.models.presets import build
from altermoma.report.summary import Summary
from altermoma.storage import sha256_of
from altermoma.workflow.accuracy import compare
from altermoma.workflow.detections import read_detections, write_detections
from altermoma.workflow.timing import spread

RECIPE = """
name = "tiny"
[prune]
score_batches = 1
reactivation_batches = 1
[finetune]
steps = 3
checkpoint_every = 1
[export]
fp32_tolerance = 1.0
fp32_frame_tolerance = 1.0
fp16_tolerance = 1.0
fp16_frame_tolerance = 1.0
[parity]
beyond = "note"
[bench]
frames = 1
rounds = 1
warmup = 0
"""
"""Random weights give near ties among the proposals, so that tolerances on the head say nothing here."""

SAME_WEIGHTS = ("prune/pruned.safetensors", "finetune/pruned.safetensors")
SAME_FILES = (
    "export/bundle/stages/fp16/lidar.onnx",
    "export/bundle/stages/fp32/head.onnx",
)


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory, tiny_nuscenes: Path) -> list[str]:
    """`altermoma-export` on the tiny data set; --out is to be added."""
    folder = tmp_path_factory.mktemp("oneshot")
    torch.manual_seed(0)
    weights = folder / "random.safetensors"
    save_checkpoint(weights, build("bevfusion-tiny").state_dict(), {"preset": "bevfusion-tiny"})
    recipe = folder / "tiny.toml"
    recipe.write_text(RECIPE)
    start = "from altermoma.cli.oneshot import main; main()"
    options = ["--recipe", recipe, "--data", tiny_nuscenes, "--checkpoint", weights, "--engine", "fp16"]
    return [sys.executable, "-c", start, *map(str, options), "--build", "never", "--out"]


@pytest.fixture(scope="module")
def finished(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    done = subprocess.run([*command, str(out)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "engines: not built here" in done.stdout
    return out


def figures(out: Path) -> dict[str, Any]:
    """What a summary says apart from times, which no two runs share."""
    record = json.loads((out / "summary.json").read_text())
    for variant in record["variants"].values():
        del variant["latency_ms"], variant["realised_share"]
    timed = {"seconds", "peak_memory_mib", "realised_share", "engines", "notes"}
    return {key: value for key, value in record.items() if key not in timed}


@pytest.mark.slow
def test_it_leaves_a_summary_a_report_and_a_bundle(finished: Path) -> None:
    summary = Summary.read(finished / "summary.json")
    assert list(summary.variants) == [
        "dense",
        "pruned",
        "dense-onnxruntime-fp32",
        "onnxruntime-fp32",
        "onnxruntime-fp16",
    ]
    assert summary.flops_reduction == pytest.approx(0.3, abs=0.03)
    assert summary.variants["pruned"].params < summary.variants["dense"].params
    assert summary.variants["onnxruntime-fp16"].latency_ms is None
    assert summary.variants["onnxruntime-fp32"].latency_ms is not None
    assert set(summary.variants["onnxruntime-fp32"].latency_ms) == set(summary.variants["pruned"].latency_ms or {})
    assert summary.engines.command == f"altermoma build {finished / 'bundle'}"
    assert summary.seconds["total"] == pytest.approx(sum(v for k, v in summary.seconds.items() if k != "total"))
    assert (finished / "report.html").stat().st_size > 20_000


@pytest.mark.slow
def test_the_bundle_is_whole_and_carries_metrics_and_widths(finished: Path) -> None:
    bundle = Bundle.open(finished / "bundle")
    summary = Summary.read(finished / "summary.json")
    assert bundle.manifest.metrics["onnxruntime-fp16"]["mAP"] == summary.variants["onnxruntime-fp16"].mAP
    assert set(bundle.manifest.precisions) == {"fp32", "fp16"}
    widths = {layer.layer: layer.after for layer in summary.channels}
    assert bundle.manifest.widths["kept"] == widths
    assert any(layer.after < layer.before for layer in summary.channels)


@pytest.mark.slow
def test_the_bundle_answers_its_reference_frame_without_torch(finished: Path) -> None:
    bundle = Bundle.open(finished / "bundle")
    reference = bundle.reference()
    pipeline = Pipeline.from_bundle(bundle, precision="fp32")
    answer = pipeline(reference.images_vhw3, reference.points_p5, reference.calibration)
    assert len(answer.boxes) == len(reference.boxes)
    close = [c for c in check_bundle(bundle).tensors if c.precision == "fp32" and c.stage != "head"]
    assert max(c.difference for c in close) < 1e-4


@pytest.mark.slow
def test_killed_anywhere_and_run_again_gives_the_same(finished: Path, command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "killed"
    for marker in (
        "prune/started.json",
        "finetune/training_state.safetensors",
        "export/started.json",
        "bench/started.json",
    ):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 300
        while not (out / "steps" / marker).exists() and time.monotonic() < deadline:
            assert process.poll() is None, f"ended before {marker}"
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (out / "summary.json").exists()
    done = subprocess.run([*command, str(out)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "finetune: done before, kept" in done.stderr
    for name in SAME_WEIGHTS:
        expected, found = load_file(finished / "steps" / name), load_file(out / "steps" / name)
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
    for name in SAME_FILES:
        assert sha256_of(out / "steps" / name) == sha256_of(finished / "steps" / name), name
    assert figures(out) == figures(finished)


@pytest.mark.slow
def test_engines_beyond_the_tolerance_end_the_run_without_a_bundle(
    finished: Path, command: list[str], tmp_path: Path
) -> None:
    out = Path(shutil.copytree(finished, tmp_path / "strict"))
    strict = tmp_path / "strict.toml"
    strict.write_text(RECIPE.replace('beyond = "note"', "fp32_boxes = 1e-30"))
    changed = [str(strict) if word.endswith("tiny.toml") else word for word in command]
    done = subprocess.run([*changed, str(out)], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "engines do not answer as torch does" in done.stderr
    assert 'beyond = "note"' in done.stderr
    assert "Traceback" not in done.stderr
    assert not {"bundle", "summary.json", "report.html"} & {path.name for path in out.iterdir()}
    kept = done.stderr.count("done before, kept")
    assert kept == len(list((out / "steps").iterdir()))


def boxes(*rows: tuple[float, float, float, float, int]) -> Boxes:
    """(x, y, yaw, score, label) each."""
    table = np.array([[x, y, 0, 4, 2, 1.5, yaw, 0, 0] for x, y, yaw, _, _ in rows], np.float32)
    return Boxes(
        geometry_m9=table.reshape(-1, 9),
        labels_m=np.array([row[4] for row in rows], np.int64),
        scores_m=np.array([row[3] for row in rows], np.float32),
    )


def test_box_agreement_is_counted_by_hand() -> None:
    reference = {
        "a": boxes((0, 0, 3.1, 0.9, 0), (10, 0, 0, 0.8, 1), (20, 0, 0, 0.7, 2), (30, 0, 0, 0.01, 0)),
        "b": boxes(),
    }
    # The first turned across +-pi, the second of another class, the third moved; the fourth is too weak to count.
    turned = 3.1 + 0.2 - 2 * np.pi
    other = {
        "a": boxes((20.1, 0, 0, 0.6, 2), (0, 0, turned, 0.9, 0), (10, 0, 0, 0.8, 3)),
        "b": boxes((1, 1, 0, 0.5, 0)),
    }
    found = compare(reference, other)
    assert (found.frames, found.boxes) == (2, 3)
    assert found.matched == pytest.approx(2 / 3)
    assert found.max_difference == pytest.approx(0.2, abs=1e-6)
    assert found.max_score_difference == pytest.approx(0.1, abs=1e-6)


@pytest.mark.parametrize("column", [3, 6, 7])
def test_a_box_that_is_not_finite_is_not_found(column: int) -> None:
    reference = {"a": boxes((0, 0, 0, 0.9, 0), (10, 0, 0, 0.8, 1))}
    other = {"a": boxes((0, 0, 0, 0.9, 0), (10, 0, 0, 0.8, 1))}
    other["a"].geometry_m9[1, column] = np.nan
    found = compare(reference, other)
    assert found.matched == 0.5
    assert found.max_difference == 0.0


def test_detections_come_back_as_they_were(tmp_path: Path) -> None:
    written = {"a": boxes((1, 2, 0.5, 0.9, 3)), "empty": boxes(), "b": boxes((3, 4, 0, 0.1, 0), (5, 6, 1, 0.2, 9))}
    write_detections(tmp_path / "d.npz", written)
    read = read_detections(tmp_path / "d.npz")
    assert list(read) == list(written)
    for token, expected in written.items():
        for name in ("geometry_m9", "labels_m", "scores_m"):
            np.testing.assert_array_equal(getattr(read[token], name), getattr(expected, name))


def test_frames_are_spread_over_the_split() -> None:
    assert spread(list("abcdefgh"), 4) == ["a", "c", "e", "g"]
    assert spread(list("abc"), 8) == ["a", "b", "c"]
