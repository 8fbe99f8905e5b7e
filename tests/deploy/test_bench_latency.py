"""`scripts/bench_latency.py --torch-device`: torch models over whole frames without engines, on a stand-in of one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from script_module import SCRIPTS, load_script
from tiny_bundle import GEOMETRY, frame
from typer.testing import CliRunner

from altermoma.deploy import pipeline as pipeline_module
from altermoma.deploy.bundle import Bundle
from altermoma.errors import UnsupportedError
from altermoma.models.batch import FrameBatch
from altermoma.storage import write_json

ABSENT = ("tensorrt", "onnxruntime", "onnx", "polygraphy", "tomli_w", "nuscenes", "matplotlib")
"""What a machine with torch and a GPU may lack."""


class Answering(torch.nn.Module):
    """Gives the answer of a bundle's reference frame to everything."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.config = SimpleNamespace(geometry=GEOMETRY)
        names = [spec.name for spec in bundle.stages("fp32")["head"].outputs]
        made = dataclasses.make_dataclass("Outputs", names)
        self.answer = made(**{name: torch.from_numpy(bundle.reference().tensors[name]) for name in names})
        self.seen: list[FrameBatch] = []

    def forward(self, batch: FrameBatch) -> Any:
        self.seen.append(batch)
        return self.answer


@pytest.fixture
def script(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    loaded = load_script("bench_latency")
    monkeypatch.setattr(loaded, "model_from_checkpoint", lambda _: Answering(bundle))
    monkeypatch.setattr(loaded, "checkpoints_of", lambda folders, given: folders)
    return loaded


def run(script: ModuleType, *words: str) -> Any:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(script.main)
    done = CliRunner().invoke(app, words)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_torch_alone(script: ModuleType, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part is there, what does not compile is told, and engines of the machine are set beside it."""

    def compiled(model: Any, *, dynamic: bool) -> Any:
        raise RuntimeError("no compiler here\nand much more")

    lazily = lambda model, dynamic: lambda batch: compiled(model, dynamic=dynamic)  # noqa: E731
    monkeypatch.setattr(torch, "compile", lazily)
    p50 = {"latency_ms": {"frame": {"p50": 1e-6}}}
    steps = {f"run {stage}": {"execution_ms": {"p50": 1e-7}} for stage in bundle.stages("fp32")}
    model = str(bundle.manifest.recipe.get("model", bundle.manifest.name))
    result = {
        "benchmarks": {model: {"variants": {"toy-fp16": p50}, "ways": {"toy-fp16": "device"}}},
        "variants": {"toy-fp16": {"steps": steps}},
    }
    write_json(tmp_path / "result.json", result)
    out, name = tmp_path / "out", f"{bundle.folder.name} torch eager"
    words = [str(bundle.folder), "--torch-device", "cpu", "--compile", "--rounds", "3", "--warmup", "1"]
    run(script, *words, "--out", str(out), "--beside", str(tmp_path / "result.json"))
    record = json.loads((out / "latency.json").read_text())
    assert list(record["variants"]) == [name]
    times = record["variants"][name]["latency_ms"]
    assert set(times) == {"images", "depth", "voxels", "tables", "copies", "network", "decode", "frame", "processor"}
    parts = sum(times[part]["mean"] for part in set(times) - {"frame", "processor"})
    assert 0 < parts <= times["frame"]["mean"]
    assert record["failed"] == {f"{bundle.folder.name} torch.compile": "RuntimeError: no compiler here"}
    assert (record["model"], record["torch_device"], record["dense"]) == (model, "cpu", name)
    page = (out / "latency.md").read_text()
    assert "| engines toy-fp16 | device | 0.00 |" in page
    assert "torch.compile did not run: RuntimeError: no compiler here." in page


def test_the_first_has_to_run(script: ModuleType, bundle: Bundle, tmp_path: Path) -> None:
    def broken(_: Any) -> None:
        raise ValueError("not today")

    script.torch_variant = lambda *_, **__: broken
    with pytest.raises(ValueError, match="not today"):
        run(script, str(bundle.folder), "--torch-device", "cpu", "--out", str(tmp_path / "out"))


@pytest.mark.parametrize(("device", "precision"), [("cuda", "fp32"), ("cpu", "fp16"), ("cpu", "int8")])
def test_what_torch_cannot_do_here_is_refused(script: ModuleType, device: str, precision: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UnsupportedError):
        script.torch_device(device, precision)


def test_each_part_waits_for_the_device(script: ModuleType, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work is queued and paid for by whoever waits: copies are not the network's time, nor that the decoding's."""
    clock, queued = [0.0], [0.0]

    def queue(ms: float) -> None:
        queued[0] += ms / 1e3

    def wait(*_: object) -> None:
        clock[0] += queued[0]
        queued[0] = 0.0

    real = script.head_arrays
    monkeypatch.setattr(pipeline_module, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(torch.cuda, "synchronize", wait)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(FrameBatch, "to", lambda batch, _: (queue(3.0), batch)[1])
    monkeypatch.setattr(Answering, "to", lambda model, _: model)
    monkeypatch.setattr(Answering, "forward", lambda model, _: (queue(40.0), model.answer)[1])
    monkeypatch.setattr(script, "head_arrays", lambda outputs: (wait(), real(outputs))[1])
    variant = script.torch_variant(Answering(bundle), torch.device("cuda"), half=True)
    found = variant(frame(1))
    assert (found["copies"], found["network"], found["decode"]) == pytest.approx((3.0, 40.0, 0.0))
    assert np.isfinite(list(found.values())).all()


def test_nothing_of_engines_is_needed() -> None:
    """A machine lent for its GPU brings torch, and little else."""
    blocked = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {str(SCRIPTS)!r})
import bench_latency
"""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stderr, time.monotonic() - started)
