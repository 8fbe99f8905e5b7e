"""The commands of a bundle's README: options that the tools know, and what they find when they are run."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from tiny_bundle import content

from altermoma.deploy.bundle import Bundle, write_bundle
from altermoma.deploy.readme import commands_of, majors_of
from altermoma.deploy.vendor_commands import StageCommands
from altermoma.deploy.vendor_feed import PLACE

VERSIONS = ("8.5", "8.6", "10.0", "10.3", "10.9", "10.13", "10.16", "11.1")
POLYGRAPHY = Path(sys.executable).parent / "polygraphy"
needs_polygraphy = pytest.mark.skipif(not POLYGRAPHY.exists(), reason="polygraphy is not installed")


def trtexec_options() -> dict[str, set[str]]:
    """Options by version, taken from the tool's sources."""
    known: dict[str, set[str]] = {version: set() for version in VERSIONS}
    for line in Path(__file__).with_name("trtexec_options.txt").read_text().splitlines():
        name, *versions = line.split()
        if not name.startswith("#"):
            for version in VERSIONS if versions == ["all"] else versions:
                known[version].add(name)
    return known


def of_bundle(bundle: Bundle, precision: str, stage: str, sparsity: str = "dense") -> StageCommands:
    made = commands_of(bundle.manifest, bundle.reference(), precision, bundle.stages(precision)[stage])
    return StageCommands(
        record=made.record, precision=precision, sparsity=sparsity, tensors=made.tensors, tolerance=made.tolerance
    )


def commands(bundle: Bundle, tool: str) -> list[str]:
    text = (bundle.folder / "README.md").read_text()
    return [line.strip() for line in text.splitlines() if line.startswith(f"    {tool} ")]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("sparsity", ["dense", "2:4"])
def test_trtexec_knows_every_option(bundle: Bundle, version: str, sparsity: str) -> None:
    known, major = trtexec_options()[version], int(version.split(".", maxsplit=1)[0])
    for precision in ("fp32", "fp16"):
        for stage in bundle.stages(precision):
            made = of_bundle(bundle, precision, stage, sparsity)
            oldest = (major, int(version.split(".")[1]))
            words = shlex.split(dataclasses.replace(made, oldest=oldest).trtexec(major))
            assert words[0] == "trtexec"
            given = [re.fullmatch(r"--(\w+)(=.+)?", word) for word in words[1:]]
            assert all(given), words
            assert {found[1] for found in given if found} <= known
            features = [word.removeprefix("--preview=") for word in words if word.startswith("--preview=")]
            assert {f"preview={name.removeprefix('+')}" for name in features} <= known


def test_precision_is_spelt_as_each_version_wants_it(bundle: Bundle) -> None:
    for precision, major, wanted in (
        ("fp16", 8, {"--fp16"}),
        ("fp16", 10, {"--stronglyTyped"}),
        ("fp16", 11, set()),
        ("fp32", 8, {"--noTF32"}),
        ("fp32", 10, {"--noTF32", "--stronglyTyped"}),
        ("fp32", 11, {"--noTF32"}),
    ):
        words = shlex.split(of_bundle(bundle, precision, "camera").trtexec(major))
        assert {word for word in words if "=" not in word} - {"trtexec"} == wanted, (precision, major)
    sparse = of_bundle(bundle, "fp16", "camera", "2:4")
    assert "--sparsity=enable" in sparse.trtexec(10)
    assert "--sparse-weights" in sparse.polygraphy(10)
    assert "spars" not in of_bundle(bundle, "fp16", "camera").trtexec(10)


def test_shapes_are_the_contracts_and_the_frames(bundle: Bundle) -> None:
    command = of_bundle(bundle, "fp16", "lidar").trtexec(8)
    assert "--minShapes=voxels:1x5,subm_table_0_mid:1x9," in command
    assert "--maxShapes=voxels:4000x5," in command
    voxels = bundle.reference().host["voxels"]
    assert f"--shapes=voxels:{len(voxels)}x5," in command
    assert f"voxels:{PLACE}/voxels.float32.bin" in command
    assert "Shapes" not in of_bundle(bundle, "fp16", "camera").trtexec(8)


def test_readme_has_the_commands_of_every_version_the_graphs_are_for(bundle: Bundle, tmp_path: Path) -> None:
    assert majors_of(bundle.manifest) == (8, 10, 11)
    assert len(commands(bundle, "trtexec")) == 2 * 5 * 3
    assert len(commands(bundle, "polygraphy")) == 2 * 5 * 4
    later = write_bundle(tmp_path / "b", dataclasses.replace(content(("fp32",)), target={"tensorrt": "10.3.0"}))
    assert len(commands(later, "trtexec")) == 5 * 2
    assert "TensorRT 8:" not in (later.folder / "README.md").read_text()


def test_engines_of_later_eight_share_their_profile(tmp_path: Path) -> None:
    """As the builder has it; a bundle for 8.5, whose trtexec does not know the option, says when to add it."""

    def readme(tensorrt: str) -> str:
        made = dataclasses.replace(content(("fp32",)), target={"tensorrt": tensorrt})
        return (write_bundle(tmp_path / tensorrt, made).folder / "README.md").read_text()

    option = "--preview=+profileSharing0806"
    held = [line for line in readme("8.6.2").splitlines() if option in line and line.startswith("    trtexec ")]
    assert len(held) == 2
    assert all("--fp16" in line or "--noTF32" in line for line in held)
    assert {line.split("stages/fp32/")[1].split(".onnx")[0] for line in held} == {"view", "lidar"}
    old = readme("8.5.2")
    assert old.count(option) == 1
    assert f"with `{option}` added" in old
    assert option not in readme("10.3.0")
    assert "`Pipeline` runs those of `altermoma build`" in old


def feed(folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, "reference/feed.py"], cwd=folder, capture_output=True, text=True, check=True, env={}
    )
    return done.stdout.split()


def test_feed_writes_what_the_graphs_read_and_the_bundle_stays_whole(copied: Path) -> None:
    written = feed(copied)
    bundle = Bundle.open(copied)
    reference = bundle.reference()
    for precision in bundle.manifest.precisions:
        for record in bundle.stages(precision).values():
            for spec in record.inputs:
                path = copied / PLACE / f"{spec.name}.{spec.dtype}.bin"
                assert path.relative_to(copied).as_posix() in written
                wanted = {**reference.host, **reference.tensors}[spec.name].astype(spec.dtype)
                np.testing.assert_array_equal(np.frombuffer(path.read_bytes(), spec.dtype), wanted.ravel())


def test_feed_needs_numpy_alone(copied: Path) -> None:
    code = """
import sys
for name in ("polygraphy", "altermoma", "onnx", "onnxruntime", "tensorrt"):
    sys.modules[name] = None
sys.path.insert(0, "reference")
import feed
assert [sorted(arrays) for arrays in feed.camera_fp16()] == [["depth", "images"]]
print(len(feed.write_all()))
try:
    feed.brain_fp16
except AttributeError:
    print("no such stage")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=copied, capture_output=True, text=True, check=False, env={})
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1] == "no such stage"


@needs_polygraphy
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_polygraphy_knows_every_option(bundle: Bundle) -> None:
    """Its own parser, in this process."""
    assert importlib.util.find_spec("polygraphy") is not None
    from polygraphy.tools.registry import TOOL_REGISTRY

    run = next(tool for tool in TOOL_REGISTRY if tool.name == "run")
    import argparse

    parser = argparse.ArgumentParser()
    run.setup_parser(parser.add_subparsers())
    for command in commands(bundle, "polygraphy"):
        parsed, unknown = parser.parse_known_args(shlex.split(command)[1:])
        assert unknown == []
        assert parsed.data_loader_script is not None


def run_polygraphy(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    words = shlex.split(command)
    env = {"POLYGRAPHY_AUTOINSTALL_DEPS": "0", "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(
        [sys.executable, str(POLYGRAPHY), *words[1:]], cwd=folder, capture_output=True, text=True, check=False, env=env
    )


@pytest.mark.slow
@needs_polygraphy
def test_a_readme_command_run_as_it_stands_passes_and_a_wrong_graph_fails(copied: Path) -> None:
    feed(copied)
    bundle = Bundle.open(copied)
    command = of_bundle(bundle, "fp32", "lidar").polygraphy()
    assert command in commands(bundle, "polygraphy")
    done = run_polygraphy(command, copied)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All outputs matched" in done.stdout
    path = copied / bundle.stages("fp32")["fusion"].file
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "w_fuse":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), "w_fuse"))
    onnx.save(model, path)
    done = run_polygraphy(of_bundle(bundle, "fp32", "fusion").polygraphy(), copied)
    assert done.returncode == 1
    assert "FAILED" in done.stdout


@pytest.mark.slow
@needs_polygraphy
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("stage", ["camera", "view", "fusion", "head"])
def test_every_readme_command_for_onnx_runtime_passes(copied: Path, stage: str, precision: str) -> None:
    feed(copied)
    done = run_polygraphy(of_bundle(Bundle.open(copied), precision, stage).polygraphy(), copied)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
@needs_polygraphy
@pytest.mark.parametrize("stage", ["camera", "lidar", "head"])
def test_readme_commands_for_tensorrt(copied: Path, stage: str) -> None:
    tensorrt = pytest.importorskip("tensorrt")
    from altermoma.deploy.tensorrt_engines import why_not

    if why_not():
        pytest.skip(why_not())
    feed(copied)
    major = int(tensorrt.__version__.split(".")[0])
    done = run_polygraphy(of_bundle(Bundle.open(copied), "fp32", stage).polygraphy(major), copied)
    assert done.returncode == 0, done.stdout + done.stderr
