"""Every way to go wrong at the command line: what is printed, the exit code, and no traceback."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from altermoma.checkpoints.io import save_checkpoint
from altermoma.cli import app, oneshot
from altermoma.deploy import tensorrt_engines
from altermoma.models.presets import build

Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs an entry point in this process; gives the exit code and what was printed to stderr."""
    monkeypatch.chdir(tmp_path)

    def invoke(command: str, *arguments: str | Path) -> tuple[int, str]:
        main = oneshot.main if command == "altermoma-export" else app.main
        monkeypatch.setattr(sys, "argv", [command, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        return int(ended.value.code or 0), capfd.readouterr().err

    return invoke


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the preset."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "random.safetensors"
    save_checkpoint(path, build("bevfusion-tiny").state_dict(), {"preset": "bevfusion-tiny"})
    return path


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("command", [("altermoma-export",), ("altermoma", "export", "--out", "bundle")])
def test_what_is_not_there_yet_says_so_and_what_to_do(run: Run, command: tuple[str, ...]) -> None:
    code, text = run(*command, "--sparsity", "2:4", "--engine", "fp32")
    assert code == 2
    assert "2:4 sparsity in fp32, which has no sparse kernels" in text
    assert "--engine fp16" in text


def test_engines_that_are_required_but_cannot_be_built_end_at_once(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("altermoma.workflow.engines.why_not", lambda: "no GPU in this test")
    code, text = run("altermoma-export", "--build", "require", "--out", tmp_path / "out")
    assert code == 3
    assert "no GPU in this test" in text
    assert "altermoma build" in text
    assert not (tmp_path / "out").exists()


def test_an_unknown_recipe_key_names_the_nearest(run: Run, tmp_path: Path) -> None:
    code, text = run("altermoma-export", "--recipe", write(tmp_path / "r.toml", "[prune]\namonut = 0.3\n"))
    assert code == 2
    assert "unknown recipe key prune.amonut" in text
    assert "did you mean prune.amount" in text


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("[prune]\namount = 1.5\n", "prune.amount = 1.5"),
        ("[prune]\nbudget = 'flop'\n", "prune.budget = 'flop'"),
        ("[finetune]\nsteps = 1.5\n", "finetune.steps = 1.5"),
        ("name = ", "is not valid TOML"),
    ],
)
def test_impossible_recipe_values_are_named(run: Run, tmp_path: Path, recipe: str, expected: str) -> None:
    code, text = run("altermoma-export", "--recipe", write(tmp_path / "r.toml", recipe))
    assert code == 2
    assert expected in text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--prune-flops", "1.0"), "--prune-flops 1"),
        (("--prune-channels", "-0.1"), "--prune-channels -0.1"),
        (("--prune-flops", "0.5", "--prune-params", "0.5"), "--prune-flops and --prune-params together"),
        (("--target", "orin"), "no target 'orin'"),
        (("--recipe", "absent.toml"), "no recipe at absent.toml"),
        (("--engine", "fp8"), "fp8"),
        (("--no-such-option",), "--no-such-option"),
    ],
)
def test_impossible_options_are_named(run: Run, options: tuple[str, ...], expected: str) -> None:
    code, text = run("altermoma-export", *options)
    assert code == 2
    assert expected in text


def test_a_budget_that_no_pruning_reaches_is_an_error(
    run: Run, tiny_nuscenes: Path, checkpoint: Path, tmp_path: Path
) -> None:
    options = ("--data", tiny_nuscenes, "--checkpoint", checkpoint, "--prune-flops", "0.999")
    code, text = run("altermoma", "prune", *options, "--out", tmp_path / "pruned.safetensors")
    assert code == 1
    assert "Expected: " in text
    assert "What to do: " in text
    assert not (tmp_path / "pruned.safetensors").exists()


def test_missing_data_is_named(run: Run, tmp_path: Path, checkpoint: Path) -> None:
    code, text = run("altermoma-export", "--data", tmp_path / "nowhere", "--checkpoint", checkpoint)
    assert code == 1
    assert f"no data at {tmp_path / 'nowhere'}" in text
    code, text = run("altermoma-export", "--data", tmp_path, "--checkpoint", checkpoint)
    assert code == 1
    assert "v1.0-mini/*.json" in text
    code, text = run("altermoma", "data", "info", tmp_path)
    assert code == 1
    assert "version folder" in text


@pytest.mark.parametrize("damage", ["truncated", "foreign", "pickled", "absent"])
def test_a_bad_checkpoint_is_named(
    run: Run, tiny_nuscenes: Path, checkpoint: Path, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / ("bad.pth" if damage == "pickled" else "bad.safetensors")
    if damage == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:100_000])
    elif damage != "absent":
        path.write_bytes(b"not a checkpoint at all")
    code, text = run("altermoma", "eval", "--data", tiny_nuscenes, "--checkpoint", path)
    assert code == 1
    assert path.name in text
    assert "Traceback" not in text


def test_a_bundle_that_is_none_is_named(run: Run, tmp_path: Path) -> None:
    for command in (("build",), ("bench",)):
        code, text = run("altermoma", *command, tmp_path)
        assert code == 1
        assert "is no bundle" in text


def test_building_without_a_gpu_exits_3(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "deploy"))
    from tiny_bundle import toy_bundle

    bundle = toy_bundle(tmp_path / "bundle").folder
    monkeypatch.setattr(tensorrt_engines, "why_not", lambda: "no GPU in this test")
    code, text = run("altermoma", "build", bundle)
    assert code == 3
    assert "no GPU in this test" in text


def test_emulated_fp16_is_not_timed(run: Run, tmp_path: Path) -> None:
    code, text = run("altermoma", "bench", tmp_path, "--engine", "fp16")
    assert code == 2
    assert "emulated" in text


def test_a_read_only_output_is_named(run: Run, tiny_nuscenes: Path, checkpoint: Path) -> None:
    place = Path("/sys/altermoma")  # read-only even for root
    code, text = run("altermoma-export", "--data", tiny_nuscenes, "--checkpoint", checkpoint, "--out", place)
    assert code == 1
    assert f"cannot write {place}" in text
    assert "choose a folder you can write to" in text


def test_a_full_disk_is_named_and_leaves_no_half_file(
    run: Run, tiny_nuscenes: Path, checkpoint: Path, small_disk: Path
) -> None:
    options = ("--data", tiny_nuscenes, "--checkpoint", checkpoint, "--steps", "1")
    code, text = run("altermoma", "train", *options, "--out", small_disk / "out")
    assert code == 1
    assert "No space left on device" in text
    assert "free" in text
    assert not list((small_disk / "out").glob("*.safetensors"))


def test_an_interrupted_run_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("altermoma.workflow.oneshot.run", interrupted)
    code, text = run("altermoma-export")
    assert code == 130
    assert text == "stopped; run the same command again to continue\n"


def test_a_gpu_that_is_too_small_says_what_helps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_large(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a capacity of ...")

    monkeypatch.setattr("altermoma.workflow.oneshot.run", too_large)
    code, text = run("altermoma-export")
    assert code == 1
    assert "the GPU has not enough memory: CUDA out of memory" in text
    assert "compute.accumulate" in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (("data", "synth", "--seed", "-1", "--out", "world"), "seed -1"),
        (("data", "synth", "--scenes", "0", "--out", "world"), "not 0"),
        (("data", "synth", "--scenes", "0", "--after", "48", "--out", "world"), "not 0"),
        (("data", "synth", "--scenes", "100", "--after", "48", "--out", "world"), "not 148"),
        (("data", "synth", "--out", "full"), "full is not an empty folder"),
        (("prune", "--out", "full"), "full is a folder"),
        (("prune", "--out", "/proc/pruned.safetensors"), "cannot write /proc/pruned.safetensors"),
        (("prune", "--out", "full/file/pruned.safetensors"), "cannot write full/file/pruned.safetensors"),
        (("export", "--out", "full"), "full exists and is no bundle"),
        (("export", "--out", "full/file"), "full/file exists and is no bundle"),
        (("train", "--out", "full/file"), "cannot write full/file"),
        (("eval", "--bundle", "full"), "full is no bundle"),
        (("report", "full"), "full is no run folder"),
        (("data", "info", "full/file"), "no version folder"),
    ],
)
def test_odd_outputs_and_inputs_end_at_once(run: Run, tmp_path: Path, command: tuple[str, ...], found: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("something of the user's")
    code, text = run("altermoma", *command)
    assert code == 1
    assert found in text
    assert "Expected: " in text
    assert "What to do: " in text
    assert (tmp_path / "full" / "file").read_text() == "something of the user's"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (("data", "synth", "--after", "48"), "--after 48 without --out"),
        (("eval", "--bundle", "b", "--checkpoint", "x.safetensors"), "--bundle together with x.safetensors"),
        (("eval", "--bundle", "b", "--device", "cpu"), "--bundle together with cpu"),
        (("eval", "--engine", "fp16"), "fp16 without a bundle"),
        (("eval", "--backend", "tensorrt"), "tensorrt without a bundle"),
        (("train", "--out", "t", "--from-scratch", "--checkpoint", "x.safetensors"), "--from-scratch together with"),
    ],
)
def test_options_that_exclude_each_other(run: Run, command: tuple[str, ...], found: str) -> None:
    code, text = run("altermoma", *command)
    assert code == 2
    assert found in text


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"recipe": {"nmae": "x"}}'])
def test_a_damaged_run_record_is_named(run: Run, tmp_path: Path, content: str) -> None:
    (tmp_path / "broken").mkdir()
    write(tmp_path / "broken" / "run.json", content)
    code, text = run("altermoma", "report", "broken")
    assert code in {1, 2}
    assert "run.json" in text or "nmae" in text
    assert "What to do: " in text


def test_a_file_that_may_not_be_read_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/data/LIDAR_TOP/x.pcd.bin")

    monkeypatch.setattr("altermoma.workflow.oneshot.run", refused)
    code, text = run("altermoma-export")
    assert code == 1
    assert "cannot use /data/LIDAR_TOP/x.pcd.bin: Permission denied" in text
    assert "What to do: " in text


def test_vehicle_commands_do_without_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        f"sys.argv = ['altermoma', 'bench', {str(tmp_path)!r}]\n"
        "from altermoma.cli.app import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "is no bundle" in done.stderr


def test_builder_options_that_the_target_lacks_end_before_any_work(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[builder]\nstrip = true\n")
    code, text = run("altermoma-export", "--recipe", recipe, "--target", "orin-jp60", "--out", tmp_path / "out")
    assert code == 2
    assert "builder.strip needs TensorRT 10.0" in text
    assert not (tmp_path / "out").exists()


def test_a_target_without_int8_is_refused_before_any_work(run: Run, tmp_path: Path) -> None:
    shipped = (Path(__file__).resolve().parents[2] / "deploy" / "generic" / "target.toml").read_text()
    folder = tmp_path / "old-gpu"
    folder.mkdir()
    own = write(folder / "target.toml", shipped.replace('"fp32", "fp16", "int8"', '"fp32", "fp16"'))
    code, text = run("altermoma-export", "--engine", "int8", "--target", own, "--out", tmp_path / "out")
    assert code == 2
    assert "target old-gpu does not offer int8" in text
    assert not (tmp_path / "out").exists()
