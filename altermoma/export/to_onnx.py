"""One torch stage to one clean ONNX graph, fp32, held against its contract."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx
from numpy.typing import NDArray

from altermoma.errors import ExportError
from altermoma.export.contract import ModelContract, StageContract, TensorSpec
from altermoma.export.graph import FLOAT, INT32, dims_of, infer_shapes
from altermoma.export.passes.fold_batchnorm import fold_batchnorm
from altermoma.export.passes.fold_constants import fold_constants
from altermoma.export.passes.names import ModulePaths, readable_names
from altermoma.export.passes.simplify import simplify

if TYPE_CHECKING:
    from altermoma.models.stages import StageModule

OPSET = 17
IR_VERSION = 8
"""What the parsers of TensorRT 8.5 read; later ones read it too."""

Arrays = Mapping[str, NDArray[Any]]
_ELEM_TYPES = {"float32": FLOAT, "int32": INT32}


def export_stage(
    module: StageModule, contract: ModelContract, stage: str, inputs: Arrays, opset: int = OPSET
) -> onnx.ModelProto:
    """Exports one stage, folds constants and batch norms, and names its nodes by module path.

    Args:
        module: the stage; its `inputs` and `outputs` name its tensors in order. Exported in eval mode.
        contract: of the whole model.
        stage: name of this stage in the contract.
        inputs: one example array per input, of the contract's dtype and shape.
        opset: version of the standard operator set.

    Raises:
        RecipeError: names, dtypes or shapes differ from the contract.
        ExportError: torch could not trace the module.
    """
    stage_contract = contract.stage(stage)
    _check_names(module, stage_contract)
    bindings: dict[str, int] = {}
    for spec in stage_contract.inputs:
        contract.check_array(spec, inputs[spec.name], bindings)
    model = _trace(module, contract, stage_contract, inputs, opset)
    model.ir_version = IR_VERSION
    paths = ModulePaths(name for name, _ in module.named_modules())
    model = readable_names(model, lambda name: paths.of_node(name, elsewhere=stage))
    for step in (fold_constants, fold_batchnorm, simplify, fold_constants, readable_names):
        model = step(model)
    model = _check_public(model, contract, stage_contract)
    onnx.checker.check_model(model, full_check=True)
    return model


def _check_names(module: StageModule, stage: StageContract) -> None:
    for role, found, wanted in (
        ("inputs", module.inputs, tuple(spec.name for spec in stage.inputs)),
        ("outputs", module.outputs, tuple(spec.name for spec in stage.outputs)),
    ):
        if tuple(found) != wanted:
            raise ExportError(
                f"stage {stage.name} of the model has {role} {', '.join(found)}",
                expected=f"{', '.join(wanted)}, as its contract says",
                remedy="make the module and export/<model>.toml agree",
            )


def _trace(
    module: StageModule, contract: ModelContract, stage: StageContract, inputs: Arrays, opset: int
) -> onnx.ModelProto:
    import torch

    from altermoma.models.modes import eval_mode

    dynamic = {spec.name: contract.dynamic_axes(spec) for spec in (*stage.inputs, *stage.outputs)}
    examples = tuple(torch.from_numpy(inputs[spec.name].copy()) for spec in stage.inputs)
    buffer = io.BytesIO()
    try:
        with eval_mode(module), torch.no_grad(), _quiet_tracer():
            # The TorchScript exporter: it writes opset 17 as such (the other one writes 18 and converts down), names
            # nodes by module path and needs no extra package.
            torch.onnx.export(
                module,
                examples,
                buffer,  # type: ignore[arg-type]  # streams are taken, the annotation forgets them
                input_names=[spec.name for spec in stage.inputs],
                output_names=[spec.name for spec in stage.outputs],
                dynamic_axes={name: axes for name, axes in dynamic.items() if axes},
                opset_version=opset,
                dynamo=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(
            f"stage {stage.name} cannot be exported: {error}",
            expected="a module of standard operators with a forward free of data-dependent control flow",
        ) from error
    return onnx.load_model_from_string(buffer.getvalue())


@contextmanager
def _quiet_tracer() -> Iterator[None]:
    """Silences what the tracer says about itself and about sizes that the contract holds fixed; nothing else."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.onnx")
        warnings.filterwarnings("ignore", message=".*legacy TorchScript-based ONNX export", category=DeprecationWarning)
        # Sizes read in Python become constants. Right here: the contract fixes all but the row axes, which are traced
        # at other sizes than the parity check runs.
        warnings.filterwarnings("ignore", message="Converting a tensor to a Python")
        # Reversed slices are left to our own folding.
        warnings.filterwarnings("ignore", message="Constant folding - Only steps=1", category=UserWarning)
        yield


def _check_public(model: onnx.ModelProto, contract: ModelContract, stage: StageContract) -> onnx.ModelProto:
    """Holds inputs and outputs against the contract and names their dynamic axes; output shapes are inferred anew."""
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    for info, spec in zip(model.graph.input, stage.inputs, strict=False):
        _name_axes(info, spec, contract)
    model = infer_shapes(model)
    for infos, specs in ((model.graph.input, stage.inputs), (model.graph.output, stage.outputs)):
        found = [info.name for info in infos]
        wanted = [spec.name for spec in specs]
        if found != wanted:
            raise ExportError(
                f"the graph of stage {stage.name} has {', '.join(found)}",
                expected=", ".join(wanted),
                remedy="an input that the stage never uses must leave the contract",
            )
        for info, spec in zip(infos, specs, strict=True):
            _check_tensor(info, spec, contract)
    return model


def _name_axes(info: onnx.ValueInfoProto, spec: TensorSpec, contract: ModelContract) -> None:
    for i, axis in contract.dynamic_axes(spec).items():
        info.type.tensor_type.shape.dim[i].dim_param = axis


def _check_tensor(info: onnx.ValueInfoProto, spec: TensorSpec, contract: ModelContract) -> None:
    tensor = info.type.tensor_type
    dims = dims_of(tensor)
    wanted = f"{spec.dtype} {list(spec.shape)}"
    if tensor.elem_type != _ELEM_TYPES[spec.dtype] or dims is None or len(dims) != len(spec.shape):
        raise ExportError(
            f"graph tensor {spec.name} has element type {tensor.elem_type} and shape {dims}", expected=wanted
        )
    for found, dimension in zip(dims, spec.shape, strict=True):
        dynamic = isinstance(dimension, str) and dimension in contract.axes
        fixed = isinstance(found, int)
        if dynamic == fixed or (fixed and isinstance(dimension, int) and found != dimension):
            raise ExportError(
                f"graph tensor {spec.name} has shape {dims}",
                expected=wanted,
                remedy="sizes that follow from the input's rows, and only those, must be axes of the contract",
            )
    _name_axes(info, spec, contract)
