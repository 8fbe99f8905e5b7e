"""Stages on ONNX Runtime's CPU provider: any machine, no GPU. fp16 graphs are emulated here: right, but slow."""

from __future__ import annotations

from typing import Any

from altermoma.deploy.manifest import StageRecord
from altermoma.deploy.stage_io import Arrays, check_inputs
from altermoma.errors import BundleError, EngineError, UnsupportedError

_PROVIDER = "CPUExecutionProvider"
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(int8)": "int8",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}


def numpy_type(onnx_type: str) -> str:
    """numpy name of an ONNX Runtime tensor type; others are given back as they are."""
    return _TYPES.get(onnx_type, onnx_type)


def open_session(graph: bytes, name: str, *, threads: int) -> Any:
    """An onnxruntime.InferenceSession on the CPU provider alone.

    Spinning is off, so that idle sessions do not steal time from others in the same process.

    Raises:
        UnsupportedError: onnxruntime is not installed.
        BundleError: the graph of stage `name` does not load.
        EngineError: ONNX Runtime chose another provider.
    """
    ort = _load()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(graph, options, providers=[_PROVIDER])
    except Exception as error:  # onnxruntime's exceptions have no public base class
        raise BundleError(
            f"the graph of stage {name} does not load in ONNX Runtime {ort.__version__}: {error}",
            remedy="export again, or install a newer onnxruntime",
        ) from error
    used = session.get_providers()
    if used != [_PROVIDER]:
        raise EngineError(f"stage {name} runs on {used}", expected=f"only {_PROVIDER}")
    return session


class OnnxRuntimeStage:
    """One stage graph in its own session.

    Raises:
        BundleError: the graph does not load, or its inputs and outputs are not those of its record.
    """

    def __init__(self, graph: bytes, record: StageRecord, *, threads: int = 1) -> None:
        self._session = open_session(graph, record.name, threads=threads)
        self.record = record
        self._outputs = [spec.name for spec in record.outputs]
        _check_signature(record, self._session)

    def run(self, inputs: Arrays) -> Arrays:
        fed = check_inputs(self.record, inputs, bounded=False)
        try:
            results = self._session.run(self._outputs, fed)
        except Exception as error:  # onnxruntime's exceptions have no public base class
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in fed.items())
            raise EngineError(f"stage {self.record.name} failed in ONNX Runtime with {shapes}: {error}") from error
        return dict(zip(self._outputs, results, strict=True))


def _load() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UnsupportedError(
            "onnxruntime is not installed",
            expected="onnxruntime 1.18 or newer",
            remedy="pip install 'altermoma[deploy]'",
        ) from error
    return onnxruntime


def _check_signature(record: StageRecord, session: Any) -> None:
    for kind, specs, found in (
        ("input", record.inputs, session.get_inputs()),
        ("output", record.outputs, session.get_outputs()),
    ):
        wanted = {spec.name: spec.dtype for spec in specs}
        got = {value.name: numpy_type(value.type) for value in found}
        if wanted != got:
            raise BundleError(
                f"stage {record.name}: the graph's {kind}s are {got}",
                expected=f"{wanted}, as the manifest says",
                remedy="export again",
            )
