"""A model of other widths, from nothing but the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from altermoma.errors import CheckpointError


def load_by_shape(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Gives every layer of `model` the widths of `state`, then its weights.

    Names must match exactly and every tensor must keep its rank and kernel size; only channel dimensions may differ.
    """
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unexpected:
        raise CheckpointError(
            f"weights of another model: {len(missing)} missing ({', '.join(missing[:3])}), "
            f"{len(unexpected)} unexpected ({', '.join(unexpected[:3])})",
            expected="the parameter names of this preset",
            remedy="name the preset that the checkpoint was made with",
        )
    for name, tensor in state.items():
        if not _compatible(own[name], tensor):
            raise CheckpointError(
                f"{name} has {_kind(tensor)}",
                expected=f"{_kind(own[name])}, where only channel counts may differ",
                remedy="name the preset that the checkpoint was made with",
            )
        owner_name, _, leaf = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        current = getattr(owner, leaf)
        if isinstance(current, nn.Parameter):
            setattr(owner, leaf, nn.Parameter(tensor.detach().clone(), requires_grad=current.requires_grad))
        else:
            owner.register_buffer(leaf, tensor.detach().clone())
    for module in model.modules():
        _update_widths(module)


def _kind(tensor: Tensor) -> str:
    return f"shape {tuple(tensor.shape)} in {str(tensor.dtype).removeprefix('torch.')}"


def _compatible(own: Tensor, new: Tensor) -> bool:
    if own.dim() != new.dim() or own.dtype != new.dtype:
        return False
    # Dense kernels are [out, in, *kernel], sparse ones [out, *kernel, in].
    kernel = slice(1, 4) if own.dim() == 5 else slice(2, None)
    return own.shape[kernel] == new.shape[kernel] and all(n > 0 for n in new.shape)


def _update_widths(module: nn.Module) -> None:
    if isinstance(module, nn.ConvTranspose2d):
        module.in_channels, module.out_channels = module.weight.shape[:2]
    elif isinstance(module, nn.Conv1d | nn.Conv2d):
        module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        module.num_features = module.weight.shape[0]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
