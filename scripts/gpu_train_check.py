"""Training, scores and evaluation on a GPU: held against the CPU, timed, and reported. Needs torch, no TensorRT.

    python scripts/gpu_train_check.py --out runs/gpu_train

For bevfusion-tiny with the package's weights and a preset at the paper's scale with random ones, on a synthetic world:

1. one frame forward, and loss and gradients of a training step: GPU against CPU, both in float32;
2. AlterMOMA's scores: GPU against CPU, seconds and memory;
3. training in fp32, tf32, bf16 and fp16, and in parts of a batch: steps a second, memory, share of the time that was
   waited for frames, a run that goes on after a kill;
4. detections of the validation frames: GPU against CPU, frames a second.

The CPU's answers need no GPU: `--only-cpu` computes them beforehand and keeps them in --out (beside a GPU that is
needed for something else, or on another machine, whose --out is then carried), and so does whoever meets one missing.

Leaves result.json and result.md in --out. What is in result.json already is not done again. After --minutes it ends,
whatever is under way: run it again. Ends with 0 if everything agrees, 1 if something does not or was not reached, 2
where there is no GPU (`--device cpu` tries the script itself out).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import typer
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from altermoma.checkpoints.io import describe, save_checkpoint
from altermoma.cli.console import run_app
from altermoma.data.nuscenes import NuScenesReader
from altermoma.data.synth import write_world
from altermoma.evaluation.predict import predict
from altermoma.frames import Boxes, Frame
from altermoma.models.batch import FrameBatch, collate
from altermoma.models.devices import choose_device, describe_device
from altermoma.models.fusion import FusionModel
from altermoma.models.random_weights import random_model
from altermoma.progress import say
from altermoma.pruning.groups import fusion_groups
from altermoma.pruning.one_round import score
from altermoma.recipe import ComputeRecipe, DataRecipe, Recipe, TrainPrecision, TrainRecipe
from altermoma.storage import atomic_path, read_json, write_json, write_text
from altermoma.training.log import read_log
from altermoma.training.loop import StepReport, train
from altermoma.training.losses import task_loss
from altermoma.training.objective import detection_objective
from altermoma.workflow.accuracy import compare
from altermoma.workflow.place import Workplace
from altermoma.workflow.scoring import scoring_batches, with_open_keys_filled

SCENES = ("scene-0061", "scene-0103")
"""One of mini_train, one of mini_val."""

NATIVE_HW = (900, 1600)

FORWARD, GRADIENT, SCORES = 1e-3, 1e-2, 0.999
"""Largest difference of an output over its magnitude; of all gradients as one vector; least correlation of scores."""

LONGEST_S = 1e6
"""Timers take no infinity."""

Record = dict[str, Any]


class StoppedError(Exception):
    """Stands for a kill."""


class TimeOverError(BaseException):
    """The time of the run is over; no result of the check that was under way."""


class LargeReader(NuScenesReader):
    """The synthetic world with pictures of nuScenes's size, which presets at the paper's scale want."""

    def read(self, token: str) -> Frame:
        frame = super().read(token)
        height, width = NATIVE_HW
        scale = width / frame.calibration.image_hw[1]
        pictures = [np.asarray(Image.fromarray(picture).resize((width, height))) for picture in frame.images_vhw3]
        intrinsics = frame.calibration.intrinsics_v33.copy()
        intrinsics[:, :2] *= scale
        calibration = dataclasses.replace(frame.calibration, intrinsics_v33=intrinsics, image_hw=NATIVE_HW)
        return dataclasses.replace(frame, images_vhw3=np.stack(pictures), calibration=calibration)


class LargePlace(Workplace):
    @cached_property
    def reader(self) -> NuScenesReader:
        return LargeReader(self.root, self.recipe.data.version, sweeps=self.recipe.data.sweeps)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model with its frames, and where it is checked."""

    name: str
    recipe: Recipe
    device: torch.device
    steps: int
    folder: Path
    answers: Path

    def place(self) -> Workplace:
        return LargePlace(self.recipe)

    def model(self, device: torch.device) -> FusionModel:
        """In eval mode, the same every time."""
        place = self.place()
        return place.model_on_host(place.checkpoint).to(device)

    def forward(self, device: torch.device) -> Answer:
        model, there = self.model(device), batch_of(self.place(), 1).to(device)
        with torch.inference_mode():
            maps = {"camera": model.camera_branch(there), "lidar": model.lidar_branch(there)}
            return maps | {"heatmap": model(there).dense_heatmap}

    def gradients(self, device: torch.device) -> Answer:
        place, model = self.place(), self.model(device).train()
        terms = detection_objective(TrainRecipe())(model, [place.train[index] for index in range(2)])
        terms.total.backward()  # type: ignore[no-untyped-call]
        gradient = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        return {"loss": terms.total.detach(), "gradient": gradient}

    def scores(self, device: torch.device) -> Answer:
        place, model = self.place(), self.model(device)
        found = score(model, fusion_groups(model), scoring_batches(place), place.recipe.prune, task_loss)
        return {"scores": torch.cat([vector.double().cpu() for vector in found.values()])}

    def detections(self, device: torch.device) -> Answer:
        """Boxes as tensors by token and field; `unpacked` gives them back."""
        boxes = predict(self.model(device), self.place().val)
        fields = [field.name for field in dataclasses.fields(Boxes)]
        return {f"{token} {name}": torch.from_numpy(getattr(b, name)) for token, b in boxes.items() for name in fields}

    def answer(self) -> None:
        """Everything that the checks want of the CPU."""
        makers = {"forward": self.forward, "gradients": self.gradients, "scores": self.scores}
        for check, make in {**makers, "detections": self.detections}.items():
            say(f"{self.name}: {check} on the CPU ...")
            kept(self, check, make)


CPU = torch.device("cpu")
Answer = dict[str, Tensor]


def kept(subject: Subject, check: str, make: Callable[[torch.device], Answer]) -> Answer:
    """What the CPU answers to a check: from its file, or made and kept there, with the seconds that it took."""
    file = subject.answers / f"{check}.safetensors"
    if not file.is_file():
        started = time.monotonic()
        answer = {name: tensor.detach().cpu().contiguous() for name, tensor in make(CPU).items()}
        told = {"seconds": json.dumps(time.monotonic() - started), "torch": torch.__version__}
        with atomic_path(file) as draft:
            save_file(answer, draft, metadata=told)
    with safe_open(str(file), framework="pt") as held:
        found = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 - it is no mapping
        return found | {SECONDS: torch.tensor(float(json.loads(held.metadata()["seconds"])), dtype=torch.float64)}


SECONDS = "seconds"
"""What the CPU took, beside its answer."""


def difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference over the largest magnitude."""
    found, wanted = found.detach().cpu().double(), wanted.detach().cpu().double()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-12))


def batch_of(place: Workplace, count: int) -> FrameBatch:
    return collate([place.train[index].inputs for index in range(count)], place.geometry)


def check_forward(subject: Subject) -> Record:
    """Both branches' maps and the heatmap; proposals after it may be chosen otherwise where they tie."""
    wanted, found = kept(subject, "forward", subject.forward), subject.forward(subject.device)
    record: Record = {name: difference(tensor, wanted[name]) for name, tensor in found.items()}
    return record | {"passed": max(record.values()) <= FORWARD}


def check_gradients(subject: Subject) -> Record:
    """Loss and gradients of a training step; batch norms take the statistics of its frames."""
    wanted, found = kept(subject, "gradients", subject.gradients), subject.gradients(subject.device)
    apart = float((found["gradient"] - wanted["gradient"]).norm() / wanted["gradient"].norm())
    losses = {"loss_cpu": float(wanted["loss"]), "loss": float(found["loss"])}
    return {**losses, "gradient": apart, "passed": apart <= GRADIENT}


def check_scores(subject: Subject) -> Record:
    """AlterMOMA on a few frames."""
    wanted = kept(subject, "scores", subject.scores)
    forget_memory(subject.device)
    started = time.monotonic()
    found = subject.scores(subject.device)
    seconds = time.monotonic() - started
    alike = float(torch.corrcoef(torch.stack([wanted["scores"], found["scores"]]))[0, 1])
    return {
        "correlation": alike,
        "seconds_cpu": float(wanted[SECONDS]),
        "seconds": seconds,
        "memory_mib": memory_mib(subject.device),
        "passed": alike >= SCORES,
    }


def forget_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def memory_mib(device: torch.device) -> float:
    """Most that tensors took on the device; 0 on a CPU, where torch does not count."""
    return torch.cuda.max_memory_allocated(device) / (1 << 20) if device.type == "cuda" else 0.0


def check_training(subject: Subject, precision: TrainPrecision, accumulate: int) -> Record:
    """A few steps; then the same killed in the middle and run again."""
    recipe = TrainRecipe(steps=subject.steps, batch_size=2, checkpoint_every=max(subject.steps // 2, 1), lr=2e-4)
    compute = ComputeRecipe(precision=precision, accumulate=accumulate, workers=subject.recipe.compute.workers)
    place, clock = subject.place(), [0.0]
    half = max(subject.steps // 2, 1)

    def stop(report: StepReport) -> None:
        if report.step == half:
            raise StoppedError

    def tick(report: StepReport) -> None:
        if report.step == half:
            clock[0] = time.monotonic()

    def run(name: str, on_step: Callable[[StepReport], None] | None) -> FusionModel:
        folder = subject.folder / f"{precision}-{accumulate}-{name}"
        return train(
            subject.model(subject.device), place.train, recipe, folder=folder, on_step=on_step, compute=compute
        ).model

    shutil.rmtree(subject.folder, ignore_errors=True)  # of a check that was killed
    forget_memory(subject.device)
    whole = run("whole", tick)
    spent = time.monotonic() - clock[0]
    memory = memory_mib(subject.device)
    try:
        run("cut", stop)
    except StoppedError:
        resumed = run("cut", None)
    lines = read_log(subject.folder / f"{precision}-{accumulate}-whole" / "training_log.jsonl")
    computed = sum(line["seconds"] for line in lines[half:])
    apart = moved_apart(subject.model(CPU), whole, resumed)
    finite = all(line["total"] is not None for line in lines)
    return {
        "steps_per_s": (subject.steps - half) / spent,
        "memory_mib": memory,
        "waited": max(0.0, 1 - computed / spent),
        "first_loss": lines[0]["total"],
        "last_loss": lines[-1]["total"],
        "skipped": sum(line.get("skipped", 0) for line in lines),
        "resumed_apart": apart,
        "passed": finite,
    }


def moved_apart(start: nn.Module, one: nn.Module, other: nn.Module) -> float:
    """How far two trained models are apart, over how far the first one came."""

    def flat(model: nn.Module) -> Tensor:
        return torch.cat([p.detach().cpu().flatten() for p in model.parameters()])

    begun, ended = flat(start), flat(one)
    return float((flat(other) - ended).norm() / (ended - begun).norm().clamp(min=1e-12))


def check_detections(subject: Subject) -> Record:
    """Boxes of the validation frames."""
    wanted = kept(subject, "detections", subject.detections)
    started = time.monotonic()
    boxes = subject.detections(subject.device)
    seconds, frames = time.monotonic() - started, len(subject.place().val)
    found = compare(unpacked(wanted), unpacked(boxes))
    return dataclasses.asdict(found) | {
        "frames_per_s_cpu": frames / float(wanted[SECONDS]),
        "frames_per_s": frames / seconds,
        "passed": found.matched >= 0.99,
    }


def unpacked(answer: Answer) -> dict[str, Boxes]:
    """What `Subject.detections` packed."""
    tokens = dict.fromkeys(name.partition(" ")[0] for name in answer if " " in name)
    fields = [field.name for field in dataclasses.fields(Boxes)]
    return {token: Boxes(**{name: answer[f"{token} {name}"].numpy() for name in fields}) for token in tokens}


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """
    Raises:
        TimeOverError: when the time is over, wherever the program is.
    """

    def over(*_: object) -> None:
        raise TimeOverError

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def checks_of(subject: Subject) -> dict[str, Callable[[], Record]]:
    """Every check by name, cheap ones first."""
    precisions: list[TrainPrecision] = ["fp32", "tf32", "bf16", "fp16"]
    if subject.device.type == "cpu":
        precisions = ["fp32", "bf16"]
    found: dict[str, Callable[[], Record]] = {
        "forward": lambda: check_forward(subject),
        "gradients": lambda: check_gradients(subject),
        "scores": lambda: check_scores(subject),
        "detections": lambda: check_detections(subject),
    }
    for precision in precisions:
        found[f"training {precision}"] = lambda precision=precision: check_training(subject, precision, 1)  # type: ignore[misc]
    found["training fp32 in 2 parts"] = lambda: check_training(subject, "fp32", 2)
    return found


def markdown(machine: str, result: dict[str, dict[str, Record]]) -> str:
    """One table per model: a line for each check with all of its figures."""
    parts = ["# Training on a GPU", machine]
    for name, checks in result.items():
        rows = ["| check | passed | figures |", "|---|---|---|"]
        rows += [f"| {check} | {_verdict(record)} | {_figures(record)} |" for check, record in checks.items()]
        parts += [f"## {name}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def _verdict(record: Record) -> str:
    return "yes" if record["passed"] else "**no**"


def _figures(record: Record) -> str:
    numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and k != "passed"}
    return ", ".join(f"{name} {number:.4g}" for name, number in numbers.items()) or str(record.get("error", ""))


def subject_of(name: str, out: Path, device: torch.device, *, steps: int, workers: int) -> Subject:
    """The model's weights are made once, random ones where the package has none."""
    data = DataRecipe(root=str(out / "world"))
    recipe = Recipe(model=name, data=data, compute=ComputeRecipe(device=cast(Literal["cpu", "cuda"], device.type)))
    recipe = dataclasses.replace(recipe, compute=dataclasses.replace(recipe.compute, workers=workers))
    weights = out / f"{name}.safetensors"
    if name != "bevfusion-tiny":
        if not weights.is_file():
            say(f"random weights for {name}")
            place = LargePlace(recipe)
            model = random_model(name, lambda _: batch_of(place, 1))
            save_checkpoint(weights, model.state_dict(), describe(model, name))
        recipe = dataclasses.replace(recipe, checkpoint=str(weights))
    prune = dataclasses.replace(
        recipe.prune, score_batches=2, reactivation_batches=2, reri_batches=1, batch_size=1, channel_step=8
    )
    recipe = with_open_keys_filled(dataclasses.replace(recipe, prune=prune))
    return Subject(
        name=name, recipe=recipe, device=device, steps=steps, folder=out / "training" / name, answers=out / "cpu" / name
    )


def run_checks(subjects: Sequence[Subject], out: Path, seconds: float = float("inf")) -> dict[str, dict[str, Record]]:
    """Does what result.json lacks, and keeps it up to date; a check that fails does not end the others.

    When the time is over, the one under way is left for the next run, unless it had all of this one's.
    """
    file = out / "result.json"
    result: dict[str, dict[str, Record]] = read_json(file) if file.is_file() else {}
    machine = describe_device(subjects[0].device) + f", torch {torch.__version__}"
    deadline, first = time.monotonic() + seconds, True
    for subject in subjects:
        done = result.setdefault(subject.name, {})
        for name, check in checks_of(subject).items():
            if name in done:
                continue
            say(f"{subject.name}: {name} ...")
            try:
                with limited(min(deadline - time.monotonic(), LONGEST_S)):
                    done[name] = check()
            except TimeOverError:
                say(f"{subject.name}: {name} was not finished in the time given")
                if not first:
                    return result
                done[name] = {"passed": False, "error": f"not finished in {seconds:.0f} s, all of a run"}
            except Exception as error:  # whatever it is, it is a result of this check
                done[name] = {"passed": False, "error": f"{type(error).__name__}: {error}".splitlines()[0]}
            first = False
            write_json(file, result)
            write_text(out / "result.md", markdown(machine, result))
    return result


def main(  # noqa: PLR0913 - one parameter per option
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything that is found.")] = Path("gpu_train"),
    models: Annotated[
        list[str] | None,
        typer.Option("--model", help="Presets; bevfusion-tiny and -mit-r50-second without it."),
    ] = None,
    device: Annotated[Literal["cuda", "cpu"], typer.Option(help="cpu tries the script out.")] = "cuda",
    steps: Annotated[int, typer.Option(min=2, help="Training steps of each precision.")] = 20,
    workers: Annotated[int, typer.Option(min=0, help="Processes that read frames.")] = 4,
    keyframes: Annotated[int, typer.Option(min=2, help="Of each of the two scenes.")] = 12,
    minutes: Annotated[float, typer.Option(help="For everything; what is not reached is done by the next run.")] = 1e4,
    only_cpu: Annotated[bool, typer.Option("--only-cpu", help="Compute what the CPU answers, and end.")] = False,
) -> None:
    """Checks and times training, scores and evaluation on a GPU."""
    started = time.monotonic()
    chosen = CPU if only_cpu else choose_device(device)
    if not (out / "world").is_dir():
        write_world(out / "world", names=SCENES, keyframes=keyframes)
    names = models or ["bevfusion-tiny", "bevfusion-mit-r50-second"]
    subjects = [subject_of(name, out, chosen, steps=steps, workers=workers) for name in names]
    if only_cpu:
        for subject in subjects:
            subject.answer()
        return
    result = run_checks(subjects, out, 60 * minutes - (time.monotonic() - started))
    print((out / "result.md").read_text(encoding="utf-8"))
    reached = all(set(checks_of(subject)) <= set(result.get(subject.name, {})) for subject in subjects)
    passed = reached and all(record["passed"] for checks in result.values() for record in checks.values())
    raise typer.Exit(0 if passed else 1)


if __name__ == "__main__":
    run_app(lambda: typer.run(main))
