"""`altermoma tables measure`: hand-written bundles at three widths, on a stand-in of TensorRT and on ONNX Runtime."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu_machine import Crash, Machine
from tensorrt_double import VERSIONS
from tiny_bundle import INPUTS, content
from toy_widths import SHARES, write_toy_widths
from typer.testing import CliRunner

from altermoma.cli.app import app
from altermoma.deploy import stage_timing, tensorrt_backend, tensorrt_engines
from altermoma.deploy.bundle import Bundle, write_bundle
from altermoma.deploy.cuda_driver import Probe
from altermoma.deploy.stage_tables import (
    LATENCY_FILE,
    TABLES_FILE,
    MeasuredTables,
    Served,
    WidthSet,
    identity_of,
)
from altermoma.deploy.stage_timing import RUNS, TimingPlan, interleaved, measure_tables
from altermoma.errors import AltermomaError, BundleError, EngineError, StorageError, UnsupportedError
from altermoma.report.stage_tables import stage_tables_markdown

WORK = {"camera": 9.0, "view": 1.0, "lidar": 5.0, "fusion": 3.0, "head": 2.0}
"""Made-up milliseconds of the dense stages."""

needs_double = pytest.mark.skipif(not VERSIONS, reason="no TensorRT API files beside the checkout")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_widths(tmp_path_factory.mktemp("widths") / "written")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "widths"))


@pytest.fixture
def target(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(stage_timing, "import_tensorrt", lambda: machine.trt)
    return machine


def on_a_clock(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], list[float]]:
    """Runs of engines take made-up times on the device, longer by chance, and a second of the host to be launched.

    What runs took by (width, stage), in their order; a capture is none.
    """
    now, rng = {"device": 0.0, "host": 0.0}, np.random.default_rng(5)
    took: dict[tuple[str, str], list[float]] = {}
    real_open, real_execute = tensorrt_backend.open_engines, tensorrt_backend.TensorRtStage._execute
    cuda, marks = machine.cuda, dict[int, float]()
    real_replay, real_record = cuda.replay, cuda.record

    def open_engines(bundle: Bundle, *arguments: Any, **options: Any) -> dict[str, Any]:
        engines = real_open(bundle, *arguments, **options)
        for engine in engines.values():
            engine.width = bundle.folder.name  # type: ignore[attr-defined]
        return engines

    def work(engine: Any) -> None:
        ms = WORK[engine.record.name] * (0.3 + 0.7 * SHARES[engine.width]) + rng.exponential(0.5)
        took.setdefault((engine.width, engine.record.name), []).append(ms)
        now["device"] += ms

    def execute(self: Any) -> None:
        real_execute(self)
        if cuda.capturing(cuda.stream):
            cuda.graph_of(cuda.stream).engine = self  # type: ignore[attr-defined]
        else:
            work(self)
            now["host"] += 1.0

    def replay(graph: Any, stream: int) -> None:
        real_replay(graph, stream)
        work(graph.engine)

    def record(event: int, stream: int) -> None:
        real_record(event, stream)
        marks[event] = now["device"]

    monkeypatch.setattr(stage_timing, "open_engines", open_engines)
    monkeypatch.setattr(tensorrt_backend.TensorRtStage, "_execute", execute)
    monkeypatch.setattr(tensorrt_backend, "time", SimpleNamespace(perf_counter=lambda: now["host"]))
    monkeypatch.setattr(cuda, "replay", replay)
    monkeypatch.setattr(cuda, "record", record)
    monkeypatch.setattr(cuda, "elapsed_ms", lambda first, second: marks[second] - marks[first])
    return took


def counted(took: list[float], turns: int) -> list[float]:
    """One run to see that it works; every turn begins with one as it is and a replay that does not count."""
    each = RUNS + 2
    assert len(took) == 1 + each * turns
    return [ms for turn in range(2, turns) for ms in took[1 + each * turn : 1 + each * (turn + 1)][2:]]


@needs_double
def test_engines_are_built_and_timed(target: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    took = on_a_clock(target, monkeypatch)
    measured = measure_tables(folder, TimingPlan(rounds=7, warmup=2))
    assert target.builds() == 3 * 5, "of the precision that is asked for alone"
    assert {r.precision for name in SHARES for r in Bundle.open(folder / name).manifest.engines.built} == {"fp16"}
    assert MeasuredTables.read(folder / LATENCY_FILE) == measured
    assert (measured.model, measured.served.precision, measured.runtime) == ("toy", "fp16", "TensorRT 10.3.0")
    assert measured.device == "Test GPU (compute capability 8.7)"
    for stage, times in measured.stages.items():
        assert times.shares == (1.0, 0.5, 0.2)
        for column, name in enumerate(SHARES):
            ms = counted(took[name, stage], 2 + 7)
            assert len(ms) == 7 * RUNS
            assert times.ms[column] == pytest.approx(np.median(ms), rel=1e-6)
            assert times.least[column] == pytest.approx(min(ms), rel=1e-6)
    assert "launched" not in measured.about
    measure_tables(folder, TimingPlan(rounds=1, warmup=0))
    assert target.builds() == 3 * 5, "engines that are there are kept"


@needs_double
def test_engines_that_cannot_be_captured_are_timed_by_their_launches_and_told(
    target: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_clock(target, monkeypatch)
    capture = target.cuda.capture

    def refuse(stream: int, work: Callable[[], None]) -> Any:
        capture(stream, work)
        raise EngineError("no graph today")

    monkeypatch.setattr(target.cuda, "capture", refuse)
    measured = measure_tables(folder, TimingPlan(rounds=1, warmup=0))
    assert measured.about["launched"] == {stage: dict.fromkeys(SHARES, "no graph today") for stage in INPUTS}
    for times in measured.stages.values():
        assert times.ms == pytest.approx([1000.0] * 3)
    page = stage_tables_markdown(measured)
    assert "not as a captured graph: camera at 100 %, camera at 50 %" in page
    assert "(no graph today)" in page


@needs_double
def test_a_kill_costs_one_engine(target: Machine, folder: Path) -> None:
    (folder / LATENCY_FILE).write_text("of an earlier time")
    build, before = target.trt.answers[("Builder", "build_serialized_network")], 7

    def killed(*arguments: Any) -> Any:
        if target.builds() > before:
            raise Crash
        return build(*arguments)

    target.trt.answers[("Builder", "build_serialized_network")] = killed
    with pytest.raises(Crash):
        measure_tables(folder, TimingPlan())
    assert (folder / LATENCY_FILE).read_text() == "of an earlier time"
    assert [path.name for path in folder.rglob(".*")] == []
    target.trt.answers[("Builder", "build_serialized_network")] = build
    measure_tables(folder, TimingPlan(rounds=1, warmup=0))
    assert target.builds() == 3 * 5 + 1
    assert set(json.loads((folder / LATENCY_FILE).read_text())["stages"]) == set(INPUTS)


@needs_double
def test_an_engine_that_does_not_build(target: Machine, folder: Path) -> None:
    target.on_stage("lidar", lambda: None)
    with pytest.raises(EngineError, match="could not build stage") as caught:
        measure_tables(folder, TimingPlan())
    assert caught.value.exit_code == 3
    assert not (folder / LATENCY_FILE).exists()


def test_without_a_gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_engines, "probe_gpu", lambda: Probe(gpu=None, reason="no GPU in this test"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(EngineError, match="no GPU in this test") as caught:
        app(["tables", "measure", str(folder)], standalone_mode=False)
    assert caught.value.exit_code == 3
    assert "--backend onnxruntime" in caught.value.remedy
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_onnx_runtime_for_real(folder: Path) -> None:
    words = ["tables", "measure", str(folder), "--backend", "onnxruntime", "--engine", "fp32", "--rounds", "3"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    measured = MeasuredTables.read(folder / LATENCY_FILE)
    assert measured.served == Served(precision="fp32", sparsity="dense", target="generic")
    assert measured.about["runs"] == dict.fromkeys(SHARES, 3)
    for times in measured.stages.values():
        assert all(0.0 < least <= ms for least, ms in zip(times.least, times.ms, strict=True))
    assert "| lidar | " in done.stdout
    assert f'latency_tables = "{folder / LATENCY_FILE}"' in done.stdout


def test_fp16_on_a_processor_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedError, match="emulated") as caught:
        measure_tables(folder, TimingPlan(backend="onnxruntime"))
    assert caught.value.exit_code == 2


def test_turns() -> None:
    order: list[str] = []

    def timed(name: str) -> Callable[[], Any]:
        return lambda: order.append(name) or np.array([float(len(order))])

    found = interleaved({name: timed(name) for name in "abc"}, rounds=2, warmup=1)
    assert order == list("abcbcacab")
    assert {name: ms.tolist() for name, ms in found.items()} == {"a": [6.0, 8.0], "b": [4.0, 9.0], "c": [5.0, 7.0]}


def damage(folder: Path, how: str) -> None:
    tables = folder / TABLES_FILE
    if how == "no tables":
        tables.unlink()
    elif how == "altered tables":
        tables.write_text(tables.read_text().replace('"camera": 0.5', '"camera": 0.4'))
    elif how == "newer tables":
        tables.write_text(tables.read_text().replace('"schema": 1', '"schema": 2'))
    elif how == "broken tables":
        tables.write_text(tables.read_text()[:-30])
    elif how == "no bundle":
        shutil.rmtree(folder / "50")
    elif how == "bundles exchanged":
        (folder / "50").rename(folder / "aside")
        (folder / "25").rename(folder / "50")
        (folder / "aside").rename(folder / "25")
    elif how == "altered graph":
        path = folder / "25" / "stages" / "fp32" / "head.onnx"
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    elif how == "no fp32 graphs":
        shutil.rmtree(folder / "25")
        bundle = write_bundle(folder / "25", dataclasses.replace(content(("fp16",)), name="toy-25"))
        renamed(folder, "25", identity_of(bundle.manifest))
    elif how == "no lidar stage":
        shutil.rmtree(folder / "100")
        toy = content(("fp32",))
        del toy.graphs["fp32"]["lidar"]
        renamed(folder, "100", identity_of(write_bundle(folder / "100", toy).manifest))


def renamed(folder: Path, name: str, identity: str) -> None:
    """Tables that name another bundle."""
    widths = WidthSet.read(folder)
    every = tuple(dataclasses.replace(w, identity=identity) if w.name == name else w for w in widths.widths)
    dataclasses.replace(widths, widths=every).write(folder)


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ("no tables", BundleError, r"holds no tables\.json"),
        ("altered tables", BundleError, "was altered after it was written"),
        ("newer tables", StorageError, "has schema 2"),
        ("broken tables", StorageError, "is not valid JSON"),
        ("no bundle", BundleError, "50 is no bundle"),
        ("bundles exchanged", BundleError, "50 is not the bundle that was written with these tables"),
        ("altered graph", BundleError, r"altered: stages/fp32/head\.onnx"),
        ("no fp32 graphs", BundleError, "holds no fp32 graphs"),
        ("no lidar stage", BundleError, "has no stage lidar"),
    ],
)
def test_folders_that_are_not_as_they_were_written(
    folder: Path, how: str, kind: type[AltermomaError], said: str
) -> None:
    damage(folder, how)
    with pytest.raises(kind, match=said) as caught:
        measure_tables(folder, TimingPlan(backend="onnxruntime", precision="fp32", rounds=1))
    assert caught.value.remedy
    assert not (folder / LATENCY_FILE).exists()


def test_noise_is_told() -> None:
    record = {"shares": (1.0, 0.5), "ms": (2.0, 1.0)}
    quiet, noisy = ((1.9, 0.9), (1.9, 0.5))
    pages = []
    for least in (quiet, noisy):
        measured = MeasuredTables(
            model="toy",
            served=Served(precision="fp16", sparsity="2:4", target="orin-jp62"),
            flops={"head": 1.0},
            device="Test GPU",
            runtime="TensorRT 10.3.0",
            stages={"head": stage_timing.StageTimes(**record, least=least)},
        )
        pages.append(stage_tables_markdown(measured))
    assert "| head | 2.000 (1.00; 1.00) | 1.000 (0.50; 0.50) |" in pages[0]
    assert "fp16 with 2:4 weights for target orin-jp62" in pages[0]
    assert "its shortest run" not in pages[0]
    assert "The median of head is 2.0 times its shortest run" in pages[1]
