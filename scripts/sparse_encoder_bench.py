"""Our sparse encoder (host tables + ONNX Runtime graph) against spconv on one real cloud, one thread each, interleaved.

    OMP_NUM_THREADS=1 python scripts/sparse_encoder_bench.py ../shared/real/nuscenes_ten_sweeps.bin \
        --out docs/benchmarks/sparse_encoder
    python scripts/sparse_encoder_bench.py ../shared/real/nuscenes_ten_sweeps.bin \
        --torch-device cuda --half --out runs/sparse_encoder

The encoder is BEVFusion-mit's (0.075 x 0.075 x 0.2 m, 21 convolutions) with random weights, dense and with uniformly
narrower widths. Both sides start from voxels: ours builds its tables, spconv its index pairs. spconv gets its norms
folded, as our graph has. Without spconv only ours is timed. Writes OUT.json and OUT.md.

With --torch-device both run there: ours in plain torch in place of ONNX Runtime (neither onnx nor onnxruntime is
needed then), its norms not folded, its tables made on the host and copied; spconv with its kernels and index building
of that device.
"""

from __future__ import annotations

import copy
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, cast

import numpy as np
import torch
import typer
from torch import Tensor, nn

from altermoma.errors import UnsupportedError
from altermoma.models.config import LidarConfig
from altermoma.models.presets import config_of
from altermoma.models.sparse_encoder import GatherBasicBlock, GatherConv, GatherConvUnit, SparseEncoder
from altermoma.models.stages import LidarStage
from altermoma.ops.sparse_tables import DOWN, DOWN_FLAT, TO_BEV, SparseTableBuilder, Window, in_rows, level_shapes
from altermoma.ops.voxels import Voxeliser
from altermoma.progress import say, track
from altermoma.storage import write_text

PRESET = "bevfusion-mit-r50-second"
GEOMETRY = config_of(PRESET).geometry
SHARE = 0.658
"""Of every width, which leaves 43.3 % of the FLOPs."""

Timer = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where torch computes, and in what."""

    device: torch.device
    dtype: torch.dtype

    def put(self, tensor: Tensor) -> Tensor:
        """There; whole numbers stay what they are."""
        return tensor.to(self.device, self.dtype if tensor.is_floating_point() else None)

    def done(self) -> None:
        """Waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def __str__(self) -> str:
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "the processor"
        return f"torch, {str(self.dtype).rpartition('.')[2]}, on {name}"


HERE = Place(device=torch.device("cpu"), dtype=torch.float32)


def narrowed(config: LidarConfig, step: int) -> LidarConfig:
    """Every width times SHARE, rounded to a multiple of `step`."""

    def width(channels: int) -> int:
        return max(step, int(channels * SHARE / step + 0.5) * step)

    stages = tuple(tuple(map(width, widths)) for widths in config.stages)
    return LidarConfig(base=width(config.base), stages=stages, channels=width(config.channels))


def random_encoder(config: LidarConfig) -> SparseEncoder:
    """Random weights and running statistics."""
    torch.manual_seed(0)
    encoder = SparseEncoder(config, GEOMETRY.point_features, GEOMETRY.bev_shape).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.5),
                (module.bias, -0.2, 0.2),
                (cast(Tensor, module.running_mean), -0.2, 0.2),
                (cast(Tensor, module.running_var), 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high)
    return encoder


def folded(conv: GatherConv, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm."""
    factor = norm.weight / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)
    return conv.weight * factor[:, None, None, None, None], norm.bias - cast(Tensor, norm.running_mean) * factor


class SpconvTwin:
    """The same encoder with the same weights in spconv."""

    def __init__(self, encoder: SparseEncoder, place: Place = HERE) -> None:
        import spconv.pytorch as spconv

        self._spconv, self.place = spconv, place
        self._input = self._conv(encoder.conv_input[0], encoder.conv_input[1], "subm0")
        self._stages: list[list[Sequence[Any]]] = []
        last = len(encoder.encoder_layers) - 1
        for level, stage in enumerate(encoder.encoder_layers.values()):
            units: list[Sequence[Any]] = []
            for unit in cast(nn.ModuleList, stage):
                if isinstance(unit, GatherBasicBlock):
                    key = f"subm{level}"
                    units.append((self._conv(unit.conv1, unit.bn1, key), self._conv(unit.conv2, unit.bn2, key)))
                elif isinstance(unit, GatherConvUnit):
                    window = DOWN_FLAT if level == last - 1 else DOWN
                    units.append((self._conv(unit[0], unit[1], f"down{level}", window),))
            self._stages.append(units)
        self._output = self._conv(encoder.conv_out[0], encoder.conv_out[1], "out", TO_BEV)

    def _conv(self, conv: Any, norm: Any, key: str, window: Window | None = None) -> Any:
        weight, bias = folded(conv, norm)
        widths = weight.shape[4], weight.shape[0]
        if window is None:
            made = self._spconv.SubMConv3d(*widths, 3, padding=1, bias=False, indice_key=key)
        else:
            made = self._spconv.SparseConv3d(
                *widths, window.kernel, stride=window.stride, padding=window.padding, bias=False, indice_key=key
            )
        made.weight.data = weight.detach().clone()
        return made.eval().to(self.place.device, self.place.dtype), self.place.put(bias.detach())

    def __call__(self, voxels: Tensor, indices_n4: Tensor) -> Tensor:
        """Voxel features and (0, x, y, z) cells -> [1, C * Z, X, Y]."""
        rows = self._spconv.SparseConvTensor(voxels, indices_n4, list(GEOMETRY.sparse_shape), 1)
        rows = self._apply(self._input, rows)
        for units in self._stages:
            for first, *second in units:
                before = rows.features
                rows = self._apply(first, rows)
                if second:
                    rows = self._apply(second[0], rows, before)
        dense = self._apply(self._output, rows).dense()
        return cast(Tensor, dense.permute(0, 1, 4, 2, 3).flatten(1, 2))

    @staticmethod
    def _apply(layer: tuple[Any, Tensor], rows: Any, shortcut: Tensor | None = None) -> Any:
        """Convolution, bias (which spconv cannot add on a CPU), shortcut and ReLU."""
        made = layer[0](rows)
        features = made.features + layer[1]
        return made.replace_feature(torch.relu_(features if shortcut is None else features.add_(shortcut)))


class HostTables:
    """The tables of a frame, made on the host."""

    def __init__(self, keys_n: np.ndarray, features_nc: np.ndarray) -> None:
        self._keys, self._features = keys_n, features_nc
        self._builder = SparseTableBuilder(GEOMETRY)
        self.inputs = self.tables()

    def tables(self) -> dict[str, np.ndarray]:
        places, tables = self._builder.build(self._keys)
        self.inputs = {"voxels": in_rows(self._features, places), **tables}
        return self.inputs


class Ours(HostTables):
    """Tables on the host, then the exported graph."""

    def __init__(self, encoder: SparseEncoder, keys_n: np.ndarray, features_nc: np.ndarray) -> None:
        from altermoma.deploy.onnxruntime_backend import open_session
        from altermoma.export.contract import load_contract
        from altermoma.export.to_onnx import export_stage

        super().__init__(keys_n, features_nc)
        model = SimpleNamespace(pts_middle_encoder=encoder, config=SimpleNamespace(geometry=GEOMETRY))
        graph = export_stage(LidarStage(cast(Any, model)), load_contract(PRESET), "lidar", self.inputs)
        self._session = open_session(graph.SerializeToString(), "lidar", threads=1)

    def graph(self) -> np.ndarray:
        return cast(np.ndarray, self._session.run(None, self.inputs)[0])


class OursInTorch(HostTables):
    """Tables on the host and copied, then the encoder in torch."""

    def __init__(self, encoder: SparseEncoder, keys_n: np.ndarray, features_nc: np.ndarray, place: Place) -> None:
        self._place = place
        self._encoder = copy.deepcopy(encoder).to(place.device, place.dtype)
        super().__init__(keys_n, features_nc)

    def tables(self) -> dict[str, np.ndarray]:
        inputs = super().tables()
        self._there = {name: self._place.put(torch.from_numpy(array)) for name, array in inputs.items()}
        self._place.done()
        return inputs

    def graph(self) -> Tensor:
        with torch.inference_mode():
            found: Tensor = self._encoder(self._there["voxels"], self._there, 1)
        self._place.done()
        return found


def gmacs(encoder: SparseEncoder, inputs: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Per level, 1e9 multiply-adds: real pairs, those of the segments' tables, those of whole 27-entry tables."""
    found: dict[str, dict[str, float]] = {}
    hooks = []
    for name, module in encoder.named_modules():
        if isinstance(module, GatherConv):

            def record(module: GatherConv, arguments: tuple[Tensor, Sequence[Tensor]], name: str = name) -> None:
                rows, tables = arguments
                pair = module.weight.shape[0] * module.weight.shape[4] / 1e9
                kernel = module.weight[0, ..., 0].numel()
                level = name.split(".")[1] if name.startswith("encoder_layers") else name.split(".", maxsplit=1)[0]
                sums = found.setdefault(level, {"real": 0.0, "padded": 0.0, "whole": 0.0})
                sums["real"] += pair * sum(int((table < len(rows)).sum()) for table in tables)
                sums["padded"] += pair * sum(table.numel() for table in tables)
                sums["whole"] += pair * kernel * sum(len(table) for table in tables)

            hooks.append(module.register_forward_pre_hook(record))
    tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        encoder(tensors["voxels"], tensors, 1)
    for hook in hooks:
        hook.remove()
    return found


def race(runners: dict[str, Timer], rounds: int) -> dict[str, dict[str, float]]:
    """Every runner once per round, in turn: milliseconds by the wall clock and of processor time."""
    wall: dict[str, list[float]] = {name: [] for name in runners}
    busy: dict[str, list[float]] = {name: [] for name in runners}
    for _ in track(range(rounds), "rounds"):
        for name, runner in runners.items():
            started, used = time.perf_counter(), time.process_time()
            runner()
            wall[name].append((time.perf_counter() - started) * 1e3)
            busy[name].append((time.process_time() - used) * 1e3)
    found = {}
    for name in runners:
        points = np.percentile(wall[name], (50, 90, 99))
        found[name] = dict(zip(("p50", "p90", "p99"), points.tolist(), strict=True))
        found[name]["cpu_p50"] = float(np.median(busy[name]))
    return found


def variants() -> dict[str, LidarConfig]:
    dense = config_of(PRESET).lidar
    return {"dense": dense, "pruned, step 8": narrowed(dense, 8), "pruned, step 16": narrowed(dense, 16)}


def place_of(asked: str, *, half: bool) -> Place | None:
    """Where torch is to run; None for ONNX Runtime.

    Raises:
        UnsupportedError: no GPU that torch can use, or half precision without one.
    """
    if asked == "cuda" and not torch.cuda.is_available():
        raise UnsupportedError("torch finds no GPU here", expected="a torch for this machine's CUDA")
    if half and asked != "cuda":
        raise UnsupportedError("--half without a GPU", expected="--torch-device cuda")
    if asked == "none":
        return None
    return Place(device=torch.device(asked), dtype=torch.float16 if half else torch.float32)


def main(
    *,
    cloud: Annotated[Path, typer.Argument(help="float16 points x, y, z, intensity, time lag")],
    out: Annotated[Path, typer.Option(help="written with .json and .md")] = Path("sparse_encoder"),
    rounds: Annotated[int, typer.Option(min=1)] = 20,
    torch_device: Annotated[Literal["none", "cpu", "cuda"], typer.Option(help="ours in torch there")] = "none",
    half: Annotated[bool, typer.Option("--half", help="fp16, with --torch-device cuda")] = False,
) -> None:
    """Times the encoder and writes what was found."""
    torch.set_num_threads(1)
    place = place_of(torch_device, half=half)
    points = np.fromfile(cloud, np.float16).astype(np.float32).reshape(-1, GEOMETRY.point_features)
    voxels = Voxeliser(GEOMETRY)(points)
    cells = np.stack(np.unravel_index(voxels.keys_n, level_shapes(GEOMETRY)[0]), axis=1)
    there = place or HERE
    indices = there.put(torch.from_numpy(np.pad(cells, ((0, 0), (1, 0)))).int())
    features = there.put(torch.from_numpy(voxels.features_nc))
    runners: dict[str, Timer] = {}
    record: dict[str, Any] = {"voxels": len(voxels.keys_n), "machine": machine(), "gmacs": {}, "difference": {}}
    record["ours"] = str(place) if place else "ONNX Runtime"
    for name, config in variants().items():
        encoder = random_encoder(config)
        data = voxels.keys_n, voxels.features_nc
        ours = OursInTorch(encoder, *data, place) if place else Ours(encoder, *data)
        record["gmacs"][name] = gmacs(encoder, ours.inputs)
        runners |= {f"{name}: tables": ours.tables, f"{name}: graph": ours.graph}
        runners[f"{name}: tables + graph"] = lambda ours=ours: (ours.tables(), ours.graph())
        twin = spconv_twin(encoder, there)
        if twin is not None:
            record["difference"][name] = difference(ours.graph(), without_gradients(twin, features, indices))
            runners[f"{name}: spconv"] = lambda twin=twin: without_gradients(twin, features, indices)
    race(runners, 1)
    record["ms"] = race(runners, rounds)
    record["rounds"] = rounds
    write_text(out.with_suffix(".json"), json.dumps(record, indent=1) + "\n")
    write_text(out.with_suffix(".md"), report(record))
    say(report(record))


def difference(found: np.ndarray | Tensor, expected: Tensor) -> float:
    """The largest, over the largest value."""
    ours, theirs = torch.as_tensor(found).float().cpu(), expected.float().cpu()
    return float((ours - theirs).abs().max() / theirs.abs().max())


def spconv_twin(encoder: SparseEncoder, place: Place) -> SpconvTwin | None:
    try:
        return SpconvTwin(encoder, place)
    except ImportError:
        say("spconv is not installed: only ours is timed")
        return None


def without_gradients(twin: SpconvTwin, features: Tensor, indices: Tensor) -> Tensor:
    with torch.no_grad():
        found = twin(features, indices)
    twin.place.done()
    return found


def machine() -> str:
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, numpy {np.__version__}"
    return f"{names[0] if names else platform.machine()}, {len(names)} cores, one thread; {versions}"


def total(sums: dict[str, dict[str, float]], kind: str) -> float:
    return sum(level[kind] for level in sums.values())


def report(record: dict[str, Any]) -> str:
    """What was found, as Markdown."""
    ms, work = record["ms"], record["gmacs"]
    lines = [
        "# The sparse encoder against spconv",
        "",
        f"    OMP_NUM_THREADS=1 python scripts/sparse_encoder_bench.py {' '.join(sys.argv[1:])}",
        "",
        f"{record['voxels']} voxels of a real ten-sweep cloud at 0.075 x 0.075 x 0.2 m; {record['machine']}; "
        f"{record['rounds']} rounds, all lines interleaved. Ours is in {record['ours']}.",
        "spconv's time holds its index building, ours its tables.",
        "Wall time depends on what else the machine does; processor time less so.",
        "",
        "| run | wall p50 ms | p90 | p99 | processor p50 ms |",
        "|---|---|---|---|---|",
    ]
    for name, times in ms.items():
        cells = (f"{times[key]:.0f}" for key in ("p50", "p90", "p99", "cpu_p50"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += [
        "",
        "| variant | spconv / ours, wall | processor | largest difference | R wall | R processor |",
        "|---|---|---|---|---|---|",
    ]
    for name in work:
        lines.append(f"| {name} | {' | '.join(ratios(record, name))} |")
    lines += ["", "R: share of the saved (padded) FLOPs that shows as saved time, tables included.", ""]
    lines += ["| 1e9 multiply-adds | real pairs | in segments | whole tables |", "|---|---|---|---|"]
    for name, levels in work.items():
        for level, sums in levels.items():
            lines.append(f"| {name}, {level} | {' | '.join(f'{sums[k]:.2f}' for k in ('real', 'padded', 'whole'))} |")
        sums_of = (f"{total(levels, kind):.2f}" for kind in ("real", "padded", "whole"))
        lines.append(f"| **{name}, all** | {' | '.join(sums_of)} |")
    return "\n".join(lines) + "\n"


def ratios(record: dict[str, Any], name: str) -> tuple[str, ...]:
    ms, work = record["ms"], record["gmacs"]
    ours, dense = ms[f"{name}: tables + graph"], ms["dense: tables + graph"]
    theirs = ms.get(f"{name}: spconv")
    saved = 1 - total(work[name], "padded") / total(work["dense"], "padded")
    speeds = ("-", "-") if theirs is None else tuple(f"{theirs[k] / ours[k]:.2f}" for k in ("p50", "cpu_p50"))
    difference = f"{record['difference'][name]:.1e}" if theirs is not None else "-"
    shares = (
        ("-", "-") if name == "dense" else tuple(f"{(1 - ours[k] / dense[k]) / saved:.2f}" for k in ("p50", "cpu_p50"))
    )
    return (*speeds, difference, *shares)


if __name__ == "__main__":
    typer.run(main)
