"""Bundles: round trip, and every way of damaging one."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_bundle import AXES, GEOMETRY, content, frame, reference, stage_graph, toy_bundle

from altermoma.deploy.bundle import Bundle, StageGraph, library_versions, write_bundle
from altermoma.deploy.manifest import AxisRange, EngineRecord, EngineState, from_text, to_text
from altermoma.deploy.onnxruntime_backend import OnnxRuntimeStage
from altermoma.errors import BundleError, StorageError
from altermoma.ops.sparse_tables import SEGMENTS
from altermoma.storage import sha256_of


def test_round_trip_keeps_everything(bundle: Bundle) -> None:
    manifest = Bundle.open(bundle.folder).manifest
    assert manifest.geometry == GEOMETRY
    assert manifest.precisions == ("fp16", "fp32")
    assert manifest.recipe["prune"]["scope"] == ["camera", "lidar"]
    assert manifest.engines == EngineState()
    camera = manifest.stages["fp16"]["camera"]
    assert [(s.name, s.dtype, s.shape) for s in camera.inputs][1] == ("depth", "float32", (2, 1, 32, 64))
    assert camera.inputs[1].meaning == "seen"
    assert camera.inputs[1].unit == "m"
    assert {s.dtype for s in camera.outputs} == {"float16"}
    lidar = manifest.stages["fp32"]["lidar"]
    assert lidar.inputs[0].shape == ("N0", 5)
    assert set(lidar.axes) == {"N0", "N3", *(f"N{level}_{segment}" for level in range(3) for segment in SEGMENTS)}
    assert lidar.sizes(lidar.inputs[0], "max") == (AXES["N0"].max, 5)


def test_numbers_of_quantised_stages_are_kept_and_may_be_missing(bundle: Bundle) -> None:
    """Manifests that were written before the key are whole, and tell nothing of it."""
    stages = {
        precision: {name: dataclasses.replace(record, numbers="fp8") for name, record in records.items()}
        for precision, records in bundle.manifest.stages.items()
    }
    text = to_text(dataclasses.replace(bundle.manifest, stages=stages))
    assert from_text(text, "here").stages["fp16"]["head"].numbers == "fp8"
    record = json.loads(text)
    del record["seal"]
    for each in (stage for stages in record["stages"].values() for stage in stages.values()):
        del each["numbers"]
    compact = json.dumps(record, sort_keys=True, separators=(",", ":"))
    record["seal"] = hashlib.sha256(compact.encode()).hexdigest()
    old = json.dumps(record, indent=1, sort_keys=True) + "\n"
    assert from_text(old, "here") == bundle.manifest


def test_reference_round_trip(bundle: Bundle) -> None:
    read, written = bundle.reference(), reference(frame())
    assert read.calibration.camera_names == ("FRONT", "BACK")
    assert read.calibration.image_hw == (120, 160)
    assert set(read.host) == set(written.host)
    for name, array in {**written.host, **written.tensors}.items():
        got = {**read.host, **read.tensors}[name]
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    np.testing.assert_array_equal(read.boxes.geometry_m9, written.boxes.geometry_m9)


def test_writing_twice_gives_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    again = toy_bundle(tmp_path / "again")
    assert again.manifest.files == bundle.manifest.files
    assert (again.folder / "manifest.json").read_bytes() == (bundle.folder / "manifest.json").read_bytes()


def test_every_file_is_hashed(bundle: Bundle) -> None:
    on_disk = {p.relative_to(bundle.folder).as_posix() for p in bundle.folder.rglob("*") if p.is_file()}
    assert on_disk == {*bundle.manifest.files, "manifest.json"}
    assert {"README.md", "reference/inputs.npz", "reference/outputs.npz", "stages/fp16/head.onnx"} <= on_disk


FILES = [
    "README.md",
    "reference/inputs.npz",
    "reference/outputs.npz",
    "reference/feed.py",
    "stages/fp32/camera.onnx",
    "stages/fp16/head.onnx",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage", ["first byte", "middle byte", "last byte", "truncated", "grown", "emptied", "missing"]
)
def test_damage_to_any_file_is_named(copied: Path, name: str, damage: str) -> None:
    path = copied / name
    payload = bytearray(path.read_bytes())
    place = {"first byte": 0, "middle byte": len(payload) // 2, "last byte": len(payload) - 1}
    if damage in place:
        payload[place[damage]] ^= 1
    payload = {"truncated": payload[:-1], "grown": payload + b"\0", "emptied": bytearray()}.get(damage, payload)
    path.write_bytes(payload)
    if damage == "missing":
        path.unlink()
    with pytest.raises(BundleError, match=name):
        Bundle.open(copied)


def test_any_changed_byte_of_the_manifest_is_noticed(copied: Path) -> None:
    """Every kind of byte: digits, letters, quotes, punctuation, white space, first and last."""
    path = copied / "manifest.json"
    payload = path.read_bytes()
    kinds = {bytes([b]): i for i, b in enumerate(payload)}
    assert len(kinds) > 40
    for i in {*kinds.values(), 0, len(payload) - 1, *range(7, len(payload), len(payload) // 60)}:
        damaged = bytearray(payload)
        damaged[i] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle.open(copied)
    for damaged_bytes in (payload[:-1], payload[: len(payload) // 2], b"", payload + b" ", b"[]", b"\xff\xfe"):
        path.write_bytes(damaged_bytes)
        with pytest.raises(BundleError, match=r"manifest\.json"):
            Bundle.open(copied)
    path.write_bytes(payload)
    Bundle.open(copied)


def test_newer_schema_says_so(copied: Path) -> None:
    path = copied / "manifest.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema": 2, "invention": 1}))
    with pytest.raises(BundleError, match="newer than this altermoma") as caught:
        Bundle.open(copied)
    assert "install" in caught.value.remedy


def test_extra_and_swapped_files_are_named(copied: Path) -> None:
    (copied / "stages/fp32/extra.onnx").write_bytes(b"x")
    a, b = copied / "stages/fp32/view.onnx", copied / "stages/fp32/head.onnx"
    a_bytes = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(a_bytes)
    with pytest.raises(BundleError) as caught:
        Bundle.open(copied)
    for text in ("not in the manifest: stages/fp32/extra.onnx", "stages/fp32/view.onnx", "stages/fp32/head.onnx"):
        assert text in str(caught.value)


def test_symbolic_link_is_no_file_of_a_bundle(copied: Path, tmp_path: Path) -> None:
    path = copied / "README.md"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"README\.md"):
        Bundle.open(copied)


def test_a_graph_altered_after_opening_is_refused(copied: Path) -> None:
    opened = Bundle.open(copied)
    record = opened.stages("fp32")["head"]
    (copied / record.file).write_bytes(stage_graph("fusion"))
    with pytest.raises(BundleError, match="altered"):
        opened.graph(record)


def test_unlisted_engines_are_left_alone_and_listed_ones_checked(copied: Path) -> None:
    (copied / "engines").mkdir()
    (copied / "engines/half.plan").write_bytes(b"left by a killed build")
    opened = Bundle.open(copied)
    plan = copied / "engines/view.plan"
    plan.write_bytes(b"plan")
    record = EngineRecord(
        stage="view",
        precision="fp32",
        file="engines/view.plan",
        sha256=sha256_of(plan),
        size=4,
        key="k",
        tensorrt="10.3",
        device="d",
    )
    opened.with_engines(EngineState(state="built", built=(record,)))
    again = Bundle.open(copied)
    assert again.manifest.engines.built == (record,)
    assert again.engine(record) == b"plan"
    plan.write_bytes(b"plam")
    with pytest.raises(BundleError, match=r"altered: engines/view\.plan"):
        Bundle.open(copied)
    plan.unlink()
    # Plans can be built again, and the bundle must open for that.
    engines = Bundle.open(copied).manifest.engines
    assert (engines.state, engines.built) == ("not built here", ())
    assert "gone since: engines/view.plan" in engines.reason
    assert "altermoma build" in engines.command
    shutil.rmtree(copied / "engines")
    assert Bundle.open(copied).manifest.engines == engines


def test_no_bundle_and_unknown_precision(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no bundle"):
        Bundle.open(tmp_path)
    with pytest.raises(BundleError, match="no int8 graphs"):
        bundle.stages("int8")


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/photo.jpg").write_bytes(b"x")
    with pytest.raises(BundleError, match="is no bundle"):
        write_bundle(tmp_path / "mine", content(("fp32",)))
    assert (tmp_path / "mine/photo.jpg").exists()


def test_writing_over_a_bundle_replaces_it(copied: Path) -> None:
    write_bundle(copied, dataclasses.replace(content(("fp32",)), name="second"))
    assert Bundle.open(copied).manifest.name == "second"
    assert not (copied / "stages/fp16").exists()


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="finite"):
        write_bundle(tmp_path / "out", dataclasses.replace(content(("fp32",)), metrics={"mAP": float("nan")}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    good = content(("fp32",))
    monkeypatch.setattr(np, "savez_compressed", refuse)
    with pytest.raises(StorageError, match="cannot write"):
        write_bundle(tmp_path / "out", good)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("axes", "said"),
    [({}, "without a range"), ({"N0": AxisRange(min=5, opt=2, max=9)}, "out of order")],
)
def test_contracts_that_cannot_be_built_are_refused(tmp_path: Path, axes: dict[str, AxisRange], said: str) -> None:
    good = content(("fp32",))
    lidar = good.graphs["fp32"]["lidar"]
    broken = StageGraph(
        onnx=lidar.onnx, inputs=lidar.inputs, outputs=lidar.outputs, axes={**(lidar.axes if axes else {}), **axes}
    )
    with pytest.raises(BundleError, match=said):
        write_bundle(tmp_path / "out", dataclasses.replace(good, graphs={"fp32": {"lidar": broken}}))


def test_every_precision_needs_a_tolerance(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no tolerance for fp32"):
        write_bundle(tmp_path / "out", dataclasses.replace(content(("fp32",)), tolerances={"fp16": 1.0}))


def test_engine_records_cannot_point_outside(copied: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.plan"
    outside.write_bytes(b"plan")
    record = EngineRecord(
        stage="view",
        precision="fp32",
        file="engines/../../outside.plan",
        sha256=sha256_of(outside),
        size=4,
        key="k",
        tensorrt="10.3",
        device="d",
    )
    (copied / "engines").mkdir()
    Bundle.open(copied).with_engines(EngineState(state="built", built=(record,)))
    with pytest.raises(BundleError, match=r"missing: engines/\.\./"):
        Bundle.open(copied)


def test_runtime_refuses_what_is_no_graph(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match="the graph of stage camera does not load"):
        OnnxRuntimeStage(b"no graph", bundle.stages("fp32")["camera"])


def test_manifest_text_is_stable(bundle: Bundle) -> None:
    assert (bundle.folder / "manifest.json").read_text() == to_text(bundle.manifest)


def test_versions_without_import() -> None:
    assert library_versions(("numpy", "no-such-library")) == {"numpy": np.__version__}
