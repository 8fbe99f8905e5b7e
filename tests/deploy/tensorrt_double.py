"""A stand-in for the tensorrt module whose surface is generated from the names of one real release.

A call, enum member or property that the release lacks raises AttributeError; a call with arguments that no signature
takes raises TypeError. Its "plans" are ONNX graphs, run by ONNX Runtime between the addresses it is given.
"""

from __future__ import annotations

import enum
import functools
import json
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
from cuda_double import FakeCuda

API = Path(__file__).resolve().parents[3] / "shared" / "tensorrt" / "api"
"""Names of eight released versions beside the checkout; tests that need them are skipped where they are missing."""

VERSIONS = sorted(path.stem for path in API.glob("*.json"))

SCRATCH = 4096
"""Bytes that a context of the double works in."""

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


LAYER_OF = {
    "fp32": "Row major linear FP32",
    "fp16": "Channel major FP16 format where channel % 8 == 0",
    "int8": "Four wide channel vectorized row major Int8 format",
    "fp8": "Row major linear FP8 format",
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
                "DataType": {"fp32": "Float", "fp16": "Half", "fp8": "FP8"}.get(precision, "Int8"),
            }
        return {"Name": "t", "Dimensions": [1], "Format/Datatype": LAYER_OF[precision]}

    layers = [
        {"Name": f"conv{i}", "LayerType": "CaskConvolution", "Inputs": [tensor(p)], "Outputs": [tensor(p)]}
        for i, p in enumerate(precisions)
    ]
    return json.dumps({"Layers": layers, "I/O Tensors" if version >= (11, 0) else "Bindings": ["x"]})


TYPES = {"tensor(float)": ("FLOAT", "f4"), "tensor(float16)": ("HALF", "f2"), "tensor(int32)": ("INT32", "i4")}
"""What engines of the double take: ONNX Runtime's type -> TensorRT's and numpy's."""


class ContextState:
    """What an execution context of the double holds. It sees to what TensorRT's documentation asks for: a context is
    captured once, only after a run with its present shapes, and never altered while that graph lives.
    """

    def __init__(self, session: Any, *, own_memory: bool, living: weakref.WeakSet[Any]) -> None:
        self.session, self.own_memory, self.living = session, own_memory, living
        living.add(self)
        self.dynamic = any(isinstance(size, str) for value in session.get_inputs() for size in value.shape)
        self.profile = -1 if self.dynamic and len(living) > 1 else 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.scratch = 0
        self.flushed = False
        self._graph: Callable[[], Any] = lambda: None

    @property
    def captured(self) -> bool:
        return self._graph() is not None

    def alter(self, of: dict[str, Any], name: str, value: Any) -> bool:
        assert not self.captured, "a context that was captured was altered"
        self.flushed = False
        of[name] = value
        return True

    def choose_profile(self, index: int, *, shared: bool) -> bool:
        """Unless it is shared, a profile of an engine with changing shapes belongs to one living context."""
        if self.dynamic and not shared and any(state.profile == index for state in self.living if state is not self):
            return False
        self.profile = index
        return True

    def place(self, value: Any, shape: Any) -> tuple[int, int]:
        return self.addresses[value.name], int(np.prod(shape)) * np.dtype(TYPES[value.type][1]).itemsize

    def execute(self, cuda: FakeCuda, stream: int) -> bool:
        assert not self.captured, "a context that is in a graph was run"
        if cuda.capturing(stream):
            assert self.flushed, "captured before a run with these shapes"
            self._graph = weakref.ref(cuda.graph_of(stream))
        self.flushed = True
        assert self.own_memory or self.scratch, "a context without memory was run"
        assert self.profile >= 0, "a context without an optimisation profile was run"
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        feeds = {value.name: (value, self.shapes[value.name]) for value in inputs}
        into = {value.name: self.addresses[value.name] for value in outputs}

        def run() -> None:
            fed = {
                name: cuda.bytes_at(*self.place(value, shape)).view(TYPES[value.type][1]).reshape(shape)
                for name, (value, shape) in feeds.items()
            }
            for name, array in zip(into, self.session.run([*into], fed), strict=True):
                raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
                cuda.bytes_at(into[name], raw.size)[:] = raw

        reads = [self.place(value, shape) for value, shape in feeds.values()]
        writes = [self.place(value, value.shape) for value in outputs]
        writes += [(self.scratch, SCRATCH)] if self.scratch else []
        cuda.queue(stream, "engine " + outputs[0].name, run, reads=reads, writes=writes)
        return True


def attach_runtime(trt: TensorRtDouble, cuda: FakeCuda) -> None:
    """Lets engines of the double run: a plan is an ONNX graph, queued on the streams of the stand-in of CUDA."""

    def hold(made: Any, **state: Any) -> Any:
        for key, value in state.items():
            object.__setattr__(made, key, value)
        return made

    def tensors(engine: Any) -> list[Any]:
        return [*engine.session.get_inputs(), *engine.session.get_outputs()]

    def deserialise(_: Any, plan: bytes) -> Any:
        session = onnxruntime.InferenceSession(bytes(plan), providers=["CPUExecutionProvider"])
        return hold(trt.make("ICudaEngine"), session=session, living=weakref.WeakSet())

    def context(engine: Any, strategy: Any = None, *, own_memory: bool = True) -> Any:
        own = own_memory and (strategy is None or strategy.name != "USER_MANAGED")
        state = ContextState(engine.session, own_memory=own, living=engine.living)
        state.profile = max(state.profile, 0) if _version(trt) >= (10, 0) else state.profile
        return hold(trt.make("IExecutionContext"), state=state)

    def sharing() -> bool:
        """From 10 on always; on 8.6 where the engine was built for it."""
        previews = [feature.name for feature, on in trt.called("IBuilderConfig", "set_preview_feature") if on]
        return _version(trt) >= (10, 0) or "PROFILE_SHARING_0806" in previews

    def give_memory(this: Any, address: int, size: int) -> None:
        assert size >= SCRATCH
        this.state.scratch = address

    def execute(this: Any, stream: int) -> bool:
        # 8.x and 10.0 take the memory as a property.
        this.state.scratch = this.state.scratch or getattr(this, "_device_memory", 0)
        return bool(this.state.execute(cuda, stream))

    trt.answers |= {
        ("Runtime", "deserialize_cuda_engine"): deserialise,
        ("ICudaEngine", "num_io_tensors"): lambda e: len(tensors(e)),
        ("ICudaEngine", "get_tensor_name"): lambda e, i: tensors(e)[i].name,
        ("ICudaEngine", "get_tensor_dtype"): lambda e, n: getattr(
            trt.DataType, TYPES[next(t.type for t in tensors(e) if t.name == n)][0]
        ),
        ("ICudaEngine", "create_execution_context"): context,
        ("ICudaEngine", "create_execution_context_without_device_memory"): lambda e: context(e, own_memory=False),
        ("ICudaEngine", "device_memory_size"): lambda _: SCRATCH,
        ("ICudaEngine", "device_memory_size_v2"): lambda _: SCRATCH,
        ("IExecutionContext", "active_optimization_profile"): lambda this: this.state.profile,
        ("IExecutionContext", "set_optimization_profile_async"): lambda this, index, _: this.state.choose_profile(
            index, shared=sharing()
        ),
        ("IExecutionContext", "set_device_memory"): give_memory,
        ("IExecutionContext", "set_input_shape"): lambda this, n, v: this.state.alter(this.state.shapes, n, v),
        ("IExecutionContext", "set_tensor_address"): lambda this, n, v: this.state.alter(this.state.addresses, n, v),
        ("IExecutionContext", "get_tensor_shape"): lambda this, n: next(
            value.shape for value in this.state.session.get_outputs() if value.name == n
        ),
        ("IExecutionContext", "execute_async_v3"): execute,
    }
