"""A stand-in for the tensorrt module whose surface is generated from the names of one real release.

A call, enum member or property that the release lacks raises AttributeError; a call with arguments that no signature
takes raises TypeError. Its "plans" are ONNX graphs, run by ONNX Runtime between the addresses it is given.
"""

from __future__ import annotations

import enum
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime

API = Path(__file__).resolve().parents[3] / "shared" / "tensorrt" / "api"
"""Names of eight released versions beside the checkout; tests that need them are skipped where they are missing."""

VERSIONS = sorted(path.stem for path in API.glob("*.json"))

_ARROW = re.compile(r"^\((?P<arguments>.*)\)(?: -> (?P<result>.*))?$", re.DOTALL)
_BRACKETED = re.compile(r"\[[^\[\]]*\]|<[^<>]*>|\([^()]*\)")


@functools.cache
def signature(text: str) -> tuple[list[tuple[str, bool]], str]:
    """Arguments after self as (name, has a default), and the result's type."""
    found = _ARROW.match(text)
    assert found is not None, text
    arguments = found["arguments"]
    while _BRACKETED.search(arguments):
        arguments = _BRACKETED.sub("", arguments)
    items = [a.strip() for a in arguments.split(",") if a.strip()]
    parsed = [(re.split(r"[:=]", a)[0].strip(), "=" in a) for a in items]
    return parsed[1:], (found["result"] or "None").strip()


@functools.cache
def read_api(version: str) -> dict[str, Any]:
    return dict(json.loads((API / f"{version}.json").read_text()))


class TensorRtDouble(SimpleNamespace):
    """`calls` lists (class, method, arguments); `answers` overrides what a method gives, by (class, method)."""

    def __init__(self, version: str) -> None:
        super().__init__()
        self._api = api = read_api(version)
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.answers: dict[tuple[str, str], Callable[..., Any]] = {}
        self.__version__ = api["version"]

    def __getattr__(self, name: str) -> Any:
        """Enums and classes are made when they are asked for: most tests touch a few of hundreds."""
        if name.startswith("_") or name not in {**self._api["enums"], **self._api["classes"]}:
            raise AttributeError(f"TensorRT {self.__version__} has no {name}")
        enums = self._api["enums"]
        made = enum.IntEnum(name, enums[name]) if name in enums else self._class(name, self._api["classes"][name])
        setattr(self, name, made)
        return made

    def called(self, owner: str, method: str) -> list[tuple[Any, ...]]:
        return [arguments for found, name, arguments in self.calls if (found, name) == (owner, method)]

    def make(self, name: str) -> Any:
        """An object of a class; signatures may name it as C++ does (IEngineInspector)."""
        return object.__new__(getattr(self, name, None) or getattr(self, name.removeprefix("I")))

    def _class(self, name: str, record: dict[str, Any]) -> type:
        props = record.get("props", {})

        def setattribute(this: Any, key: str, value: Any) -> None:
            if key not in props or not props[key].endswith(" rw"):
                raise AttributeError(f"{name} has no writable {key}")
            self.calls.append((name, f"{key} =", (value,)))
            object.__setattr__(this, f"_{key}", value)

        body: dict[str, Any] = {"__setattr__": setattribute}
        for method, signatures in record["methods"].items():
            if not method.startswith("__") or method == "__init__":
                body[method] = self._method(name, method, signatures)
        for key in props:
            body[key] = property(lambda this, key=key: self._read(name, key, this))
        for key, members in record.get("nested", {}).items():
            body[key] = enum.IntEnum(key, members)
        return type(name, (), body)

    def _read(self, owner: str, key: str, this: Any) -> Any:
        answer = self.answers.get((owner, key))
        return answer(this) if answer else getattr(this, f"_{key}", 0)

    def _method(self, owner: str, method: str, signatures: list[str]) -> Callable[..., Any]:
        overloads = [signature(text) for text in signatures]

        def call(this: Any, *arguments: Any, **named: Any) -> Any:
            fitting = [result for parameters, result in overloads if fits(parameters, arguments, named)]
            if not fitting:
                raise TypeError(f"{owner}.{method}{arguments} {named}: no overload among {signatures}")
            self.calls.append((owner, method, (*arguments, *named.values())))
            answer = self.answers.get((owner, method))
            return answer(this, *arguments, **named) if answer else self._result(fitting[0])

        return call

    def _result(self, kind: str) -> Any:
        kind = kind.rpartition("::")[2]
        simple = {"bool": True, "int": 0, "str": "", "None": None, "IHostMemory": bytearray(b"host")}
        return simple[kind] if kind in simple else self.make(kind)


def fits(parameters: list[tuple[str, bool]], arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    names = [name for name, _ in parameters]
    if "*args" in names or "/" in names:
        return True
    given = set(names[: len(arguments)]) | set(named)
    needed = {name for name, optional in parameters if not optional}
    return len(arguments) <= len(names) and set(named) <= set(names) and needed <= given


class FakeCuda:
    """Device memory in host memory, by address."""

    def __init__(self) -> None:
        self.gpu = SimpleNamespace(name="Test GPU")
        self.stream = 77
        self.memory: dict[int, np.ndarray[Any, Any]] = {}

    def device_buffer(self, size: int) -> Any:
        block = np.full(max(size, 1), 0xAB, np.uint8)
        self.memory[block.ctypes.data] = block
        return SimpleNamespace(address=block.ctypes.data, size=size)

    def pinned(self, size: int) -> np.ndarray[Any, Any]:
        return np.full(max(size, 1), 0xCD, np.uint8)

    def upload(self, buffer: Any, host: np.ndarray[Any, Any], size: int) -> None:
        self.memory[buffer.address][:size] = host[:size]

    def download(self, host: np.ndarray[Any, Any], buffer: Any, size: int) -> None:
        host[:size] = self.memory[buffer.address][:size]

    def synchronise(self) -> None:
        return None


LAYER_OF = {
    "fp32": "Row major linear FP32",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "int8": "Four wide channel vectorized row major Int8 format",
}


def built_in(trt: TensorRtDouble, *precisions: str) -> None:
    """Lets builds succeed with layers of these precisions."""
    report = inspector_report(_version(trt), *precisions)
    trt.answers[("EngineInspector", "get_engine_information")] = lambda *_: report
    trt.answers[("IBuilderConfig", "add_optimization_profile")] = lambda *_: 0


def _version(trt: TensorRtDouble) -> tuple[int, int]:
    major, minor = trt.__version__.split(".")[:2]
    return int(major), int(minor)


def inspector_report(version: tuple[int, int], *precisions: str) -> str:
    """What the engine inspector of that version says about layers of these precisions."""

    def tensor(precision: str) -> dict[str, Any]:
        if version >= (11, 0):
            return {
                "Name": "t",
                "Format": "Linear",
                "DataType": {"fp32": "Float", "fp16": "Half"}.get(precision, "Int8"),
            }
        return {"Name": "t", "Dimensions": [1], "Format/Datatype": LAYER_OF[precision]}

    layers = [
        {"Name": f"conv{i}", "LayerType": "CaskConvolution", "Inputs": [tensor(p)], "Outputs": [tensor(p)]}
        for i, p in enumerate(precisions)
    ]
    return json.dumps({"Layers": layers, "I/O Tensors" if version >= (11, 0) else "Bindings": ["x"]})


def attach_runtime(trt: TensorRtDouble, cuda: FakeCuda) -> None:
    """Lets engines of the double run: a plan is an ONNX graph."""
    state: dict[str, Any] = {}
    types = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int32)": "INT32"}
    numpys = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int32)": np.int32}

    def deserialise(_: Any, plan: bytes) -> Any:
        state["session"] = session = onnxruntime.InferenceSession(bytes(plan), providers=["CPUExecutionProvider"])
        engine = trt.make("ICudaEngine")
        object.__setattr__(engine, "session", session)
        return engine

    def tensors(engine: Any) -> list[Any]:
        return [*engine.session.get_inputs(), *engine.session.get_outputs()]

    def context(engine: Any) -> Any:
        made = trt.make("IExecutionContext")
        for key, value in {"session": engine.session, "shapes": {}, "addresses": {}, "made": {}}.items():
            object.__setattr__(made, key, value)
        return made

    def keep(of: str) -> Callable[..., bool]:
        def store(this: Any, name: str, value: Any) -> bool:
            getattr(this, of)[name] = value
            return True

        return store

    def execute(this: Any, stream: int) -> bool:
        fed = {}
        for value in this.session.get_inputs():
            shape, dtype = this.shapes[value.name], np.dtype(numpys[value.type])
            raw = cuda.memory[this.addresses[value.name]][: int(np.prod(shape)) * dtype.itemsize]
            fed[value.name] = raw.view(dtype).reshape(shape)
        for value, array in zip(this.session.get_outputs(), this.session.run(None, fed), strict=True):
            this.made[value.name] = array.shape
            raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            cuda.memory[this.addresses[value.name]][: raw.size] = raw
        return stream == cuda.stream

    trt.answers |= {
        ("Runtime", "deserialize_cuda_engine"): deserialise,
        ("ICudaEngine", "num_io_tensors"): lambda e: len(tensors(e)),
        ("ICudaEngine", "get_tensor_name"): lambda e, i: tensors(e)[i].name,
        ("ICudaEngine", "get_tensor_dtype"): lambda e, n: getattr(
            trt.DataType, types[next(t.type for t in tensors(e) if t.name == n)]
        ),
        ("ICudaEngine", "create_execution_context"): context,
        ("IExecutionContext", "set_input_shape"): keep("shapes"),
        ("IExecutionContext", "set_tensor_address"): keep("addresses"),
        ("IExecutionContext", "get_tensor_shape"): lambda this, n: this.made[n],
        ("IExecutionContext", "execute_async_v3"): execute,
    }
