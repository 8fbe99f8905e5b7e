"""Where models compute: the device that was asked for, or an error that says why not."""

from __future__ import annotations

import os

import torch
from torch import nn

from altermoma.errors import RecipeError
from altermoma.recipe import Device


def choose_device(asked: Device = "auto") -> torch.device:
    """The device of this process: `auto` is a GPU where torch has one.

    Of several processes that torchrun started, each takes the GPU of its number. On a GPU, products and convolutions
    of float32 are then computed in float32: torch by itself rounds the inputs of convolutions to TF32, which moves
    boxes by more than an export may. `compute.precision` asks for less.

    Raises:
        RecipeError: a GPU was asked for and there is none, or fewer than processes.
    """
    if asked == "cpu" or (asked == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise RecipeError(
            f"device cuda, but {_why_no_gpu()}",
            expected="a GPU that torch can use",
            remedy="leave the device at auto, or set it to cpu",
        )
    number, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= there:
        raise RecipeError(
            f"process {number} of this machine, which has {there} GPUs",
            expected="a GPU for each process",
            remedy=f"start at most {there} processes on it: torchrun --nproc-per-node {there}",
        )
    allow_tf32(False)
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def allow_tf32(allowed: bool) -> None:
    """Whether products and convolutions of float32 on a GPU may round their inputs to ten bits."""
    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def describe_device(device: torch.device) -> str:
    """For people: `cpu, 2 threads`, or the name of the GPU."""
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    threads = torch.get_num_threads()
    return f"{device}, {threads} thread{'s' if threads > 1 else ''}"


def device_of(model: nn.Module) -> torch.device:
    """Where a model's weights are."""
    return next(model.parameters()).device


def _why_no_gpu() -> str:
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) was built without CUDA"
    return f"torch {torch.__version__} for CUDA {torch.version.cuda} finds no GPU"
