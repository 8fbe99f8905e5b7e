"""A bundle: one folder with everything a vehicle needs to check, build and run a detector.

manifest.json                       what it is, and the SHA-256 of every other file
README.md                           how to build and check it with trtexec and polygraphy
stages/<precision>/<stage>.onnx
stages/<precision>-onnxruntime/     graphs that ONNX Runtime runs in their place (int8 alone)
calibration/                        what int8 ranges were found on, and the ranges
reference/inputs.npz, outputs.npz   one frame, so that the target can check itself
reference/feed.py                   hands that frame to trtexec and polygraphy
engines/                            plans built on a target; used only where the manifest lists them
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from altermoma.deploy import vendor_feed
from altermoma.deploy.manifest import (
    BUILD_COMMAND,
    AxisRange,
    EngineRecord,
    EngineState,
    FileRecord,
    Manifest,
    StageRecord,
    TensorSpec,
    from_text,
    to_text,
)
from altermoma.deploy.readme import bundle_readme
from altermoma.deploy.reference import Reference, read_reference, write_reference
from altermoma.deploy.vendor_commands import FEED_FILE
from altermoma.errors import BundleError
from altermoma.geometry import Geometry
from altermoma.recipe import Precision
from altermoma.storage import atomic_path, sha256_of, write_bytes, write_text

MANIFEST_FILE = "manifest.json"
README_FILE = "README.md"
ENGINES_FOLDER = "engines"


@dataclass(frozen=True, kw_only=True)
class StageGraph:
    """One exported stage: serialised ONNX and its contract.

    Attributes:
        axes: range of each dynamic axis that the specs name.
        numbers, noise, rounding: as in `StageRecord`.
    """

    onnx: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: dict[str, AxisRange] = field(default_factory=dict)
    numbers: str = ""
    noise: dict[str, dict[str, float]] = field(default_factory=dict)
    rounding: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class BundleContent:
    """What goes into a bundle; what is not named here as in `Manifest`.

    Attributes:
        graphs: precision -> stage name -> graph.
        onnxruntime: the same for graphs that ONNX Runtime runs in their place.
        notes: further files by their path in the bundle.
    """

    name: str
    recipe: dict[str, Any]
    geometry: Geometry
    class_names: tuple[str, ...]
    graphs: dict[str, dict[str, StageGraph]]
    reference: Reference
    tolerances: dict[str, float]
    widths: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    target: dict[str, Any] = field(default_factory=dict)
    engines: EngineState = field(default_factory=EngineState)
    sparsity: dict[str, Any] = field(default_factory=dict)
    onnxruntime: dict[str, dict[str, StageGraph]] = field(default_factory=dict)
    notes: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle whose files were checked against its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Reads and checks a bundle. One whose plans were deleted is one whose engines are not built yet.

        Raises:
            BundleError: no bundle, a newer schema, or any file missing, extra, truncated or altered; all are named.
        """
        path = folder / MANIFEST_FILE
        try:
            text = path.read_bytes().decode("utf-8")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise BundleError(
                f"{folder} is no bundle: it has no {MANIFEST_FILE}",
                expected="a folder written by altermoma-export",
                remedy="name the bundle folder itself, or export again",
            ) from error
        except UnicodeDecodeError as error:
            raise BundleError(f"{path} is not UTF-8 text: {error}", remedy="copy the bundle again") from error
        manifest = from_text(text, str(path))
        _check_files(folder, manifest)
        return cls(folder=folder, manifest=_without_lost_plans(folder, manifest))

    def reread(self) -> Bundle:
        """The bundle as its manifest now is, with engines that were built meanwhile; no file is hashed again."""
        path = self.folder / MANIFEST_FILE
        manifest = from_text(path.read_text(encoding="utf-8"), str(path))
        return Bundle(folder=self.folder, manifest=_without_lost_plans(self.folder, manifest))

    def stages(self, precision: str) -> dict[str, StageRecord]:
        """Stage records of one precision.

        Raises:
            BundleError: the bundle does not hold that precision.
        """
        if precision not in self.manifest.stages:
            known = precision in get_args(Precision)
            raise BundleError(
                f"bundle {self.folder} holds no {precision} graphs",
                expected="one of " + ", ".join(self.manifest.precisions),
                remedy=f"export with --engine {precision}" if known else "choose one of these",
            )
        return self.manifest.stages[precision]

    def stages_for(self, backend: str, precision: str) -> dict[str, StageRecord]:
        """Stage records of one precision as a runtime takes them: ONNX Runtime has int8 graphs of its own.

        Raises:
            BundleError: the bundle does not hold that precision.
        """
        records = self.stages(precision)
        return self.manifest.onnxruntime.get(precision, records) if backend == "onnxruntime" else records

    def graph(self, record: StageRecord) -> bytes:
        """Serialised ONNX of a stage, checked again as it is read."""
        return self._read(record.file, self.manifest.files[record.file].sha256)

    def engine(self, record: EngineRecord) -> bytes:
        """A built plan, checked against its record."""
        return self._read(record.file, record.sha256)

    def reference(self) -> Reference:
        return read_reference(self.folder)

    def with_engines(self, engines: EngineState) -> Bundle:
        """Records engines that now lie under `engines/`; replaces the manifest in one step."""
        manifest = dataclasses.replace(self.manifest, engines=engines)
        write_text(self.folder / MANIFEST_FILE, to_text(manifest))
        return Bundle(folder=self.folder, manifest=manifest)

    def _read(self, name: str, sha256: str) -> bytes:
        try:
            payload = (self.folder / name).read_bytes()
        except OSError as error:
            raise BundleError(f"bundle {self.folder}: cannot read {name}: {error}") from error
        if hashlib.sha256(payload).hexdigest() != sha256:
            raise BundleError(f"bundle {self.folder}: {name} was altered", expected=f"SHA-256 {sha256}")
        return payload


def write_bundle(folder: Path, content: BundleContent) -> Bundle:
    """Writes a whole bundle, then moves it into place; an existing bundle there is replaced.

    Raises:
        BundleError: `folder` exists and is no bundle, or a stage contract is inconsistent.
        StorageError: full disk or read-only place; nothing is left behind.
    """
    check_replaceable(folder)
    loose = sorted(set(content.graphs) - set(content.tolerances))
    if loose:
        raise BundleError(f"no tolerance for {', '.join(loose)}", expected="one for each precision of the bundle")
    stages = {p: {n: _record(p, n, g) for n, g in graphs.items()} for p, graphs in content.graphs.items()}
    variants = {
        p: {n: _record(f"{p}-onnxruntime", n, g) for n, g in graphs.items()}
        for p, graphs in content.onnxruntime.items()
    }
    manifest = Manifest(
        stages=stages,
        onnxruntime=variants,
        files={},
        **{
            f.name: getattr(content, f.name)
            for f in dataclasses.fields(content)
            if f.name not in {"graphs", "onnxruntime", "notes", "reference"}
        },
    )
    with atomic_path(folder) as draft:
        draft.mkdir()
        for records, every in ((stages, content.graphs), (variants, content.onnxruntime)):
            for precision, graphs in every.items():
                for name, graph in graphs.items():
                    write_bytes(draft / records[precision][name].file, graph.onnx)
        for path, payload in content.notes.items():
            write_bytes(draft / path, payload)
        write_reference(draft, content.reference)
        write_text(draft / README_FILE, bundle_readme(manifest, content.reference))
        shutil.copy(vendor_feed.__file__, draft / FEED_FILE)
        files = {path: FileRecord(sha256=sha256_of(draft / path), size=size) for path, size in _sizes(draft).items()}
        write_text(draft / MANIFEST_FILE, to_text(dataclasses.replace(manifest, files=files)))
    return Bundle.open(folder)


def check_replaceable(folder: Path) -> None:
    """A bundle may take the place of a bundle or of nothing.

    Raises:
        BundleError: something else is there.
    """
    if folder.is_dir() and ((folder / MANIFEST_FILE).is_file() or not any(folder.iterdir())):
        return
    if folder.exists():
        raise BundleError(
            f"{folder} exists and is no bundle",
            expected="a new folder, an empty one or a bundle to replace",
            remedy="choose another folder",
        )


def copy_bundle(source: Path, folder: Path, **changes: Any) -> Bundle:
    """Copies a bundle as a whole, with other values for some fields of its manifest; one that is there is replaced."""
    manifest = dataclasses.replace(Bundle.open(source).manifest, **changes)
    with atomic_path(folder) as draft:
        shutil.copytree(source, draft)
        write_text(draft / MANIFEST_FILE, to_text(manifest))
    return Bundle.open(folder)


def library_versions(names: tuple[str, ...] = ("altermoma", "numpy", "onnx", "onnxruntime", "torch")) -> dict[str, str]:
    """Installed versions of those libraries that are there, without importing them."""
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _record(precision: str, name: str, graph: StageGraph) -> StageRecord:
    record = StageRecord(
        name=name,
        file=f"stages/{precision}/{name}.onnx",
        inputs=graph.inputs,
        outputs=graph.outputs,
        axes=graph.axes,
        numbers=graph.numbers,
        noise=graph.noise,
        rounding=graph.rounding,
    )
    used = {d for spec in (*graph.inputs, *graph.outputs) for d in spec.shape if isinstance(d, str)}
    unbounded = sorted(used - set(graph.axes))
    if unbounded:
        raise BundleError(
            f"stage {name} has dynamic axes {', '.join(unbounded)} without a range", expected="min, opt, max"
        )
    wrong = sorted(n for n, a in graph.axes.items() if not 0 <= a.min <= a.opt <= a.max)
    if wrong:
        raise BundleError(
            f"stage {name}: the range of {', '.join(wrong)} is out of order", expected="min <= opt <= max"
        )
    return record


def _sizes(folder: Path) -> dict[str, int]:
    """Size of every file below `folder` by its POSIX path, without the manifest and what lies under `engines/`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name != MANIFEST_FILE and not name.startswith(f"{ENGINES_FOLDER}/"):
            found[name] = path.lstat().st_size
    return found


def _check_files(folder: Path, manifest: Manifest) -> None:
    found, wanted = _sizes(folder), manifest.files
    faults = [f"missing: {name}" for name in sorted(set(wanted) - set(found))]
    faults += [f"not in the manifest: {name}" for name in sorted(set(found) - set(wanted))]
    for name in sorted(set(found) & set(wanted)):
        if found[name] != wanted[name].size:
            faults.append(f"truncated or grown: {name} ({found[name]} bytes instead of {wanted[name].size})")
        elif (folder / name).is_symlink() or sha256_of(folder / name) != wanted[name].sha256:
            faults.append(f"altered: {name}")
    every = (*manifest.stages.values(), *manifest.onnxruntime.values())
    listed = {record.file for stages in every for record in stages.values()}
    faults += [f"stage file without a hash: {name}" for name in sorted(listed - set(wanted))]
    faults += _engine_faults(folder, manifest)
    if faults:
        raise BundleError(
            f"bundle {folder} is not as it was written:\n  " + "\n  ".join(faults),
            expected="every file of the manifest, unaltered, and no other",
            remedy="copy the bundle again, or export it again",
        )


def _without_lost_plans(folder: Path, manifest: Manifest) -> Manifest:
    """Plans can be built again: where some are gone, the bundle says so and what to do, and is otherwise whole."""
    lost = [record for record in manifest.engines.built if not (folder / record.file).is_file()]
    if not lost:
        return manifest
    engines = EngineState(
        reason=f"built before and gone since: {', '.join(record.file for record in lost)}",
        command=BUILD_COMMAND,
        built=tuple(record for record in manifest.engines.built if record not in lost),
    )
    return dataclasses.replace(manifest, engines=engines)


def _engine_faults(folder: Path, manifest: Manifest) -> list[str]:
    faults = []
    for record in manifest.engines.built:
        path = folder / record.file
        if Path(record.file).parent != Path(ENGINES_FOLDER):
            faults.append(f"missing: {record.file}")
        elif not path.is_file():
            continue
        elif path.stat().st_size != record.size or sha256_of(path) != record.sha256:
            faults.append(f"altered: {record.file}")
    return faults
