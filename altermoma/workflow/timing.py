"""The latency step: dense and pruned, torch and engines, interleaved over whole frames in one process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from altermoma.deploy.benchmark import Variant, pipeline_variant, run_benchmark
from altermoma.deploy.pipeline import Pipeline
from altermoma.workflow.place import Workplace


def bench_variants(
    place: Workplace, *, dense: Path, pruned: Path, torch_weights: Mapping[str, Path], engines: tuple[str, ...]
) -> dict[str, Any]:
    """Times every variant whose latency means something here; fp16 on the CPU is emulated and left out.

    Args:
        place: data, models and the recipe's frames, rounds and threads.
        dense: bundle with the fp32 graphs of the dense model.
        pruned: bundle with those of the pruned model, and engines.
        torch_weights: checkpoints by variant name.
        engines: precisions of built TensorRT engines in `pruned`.
    """
    from altermoma.workflow.torch_stages import torch_pipeline

    recipe = place.recipe.bench
    variants: dict[str, Variant] = {
        name: pipeline_variant(torch_pipeline(place.model_on_host(path))) for name, path in torch_weights.items()
    }
    for name, bundle in (("dense-onnxruntime-fp32", dense), ("onnxruntime-fp32", pruned)):
        pipeline = Pipeline.from_bundle(bundle, "onnxruntime", precision="fp32", threads=recipe.threads)
        variants[name] = pipeline_variant(pipeline)
    if place.recipe.engine.precision == "int8":
        pipeline = Pipeline.from_bundle(pruned, "onnxruntime", precision="int8", threads=recipe.threads)
        variants["onnxruntime-int8"] = pipeline_variant(pipeline)
    for precision in engines:
        pipeline = Pipeline.from_bundle(pruned, "tensorrt", precision=precision)
        variants[f"tensorrt-{precision}"] = pipeline_variant(pipeline)
    frames = [place.reader.read(token) for token in spread(place.val.tokens, recipe.frames)]
    with torch_threads(recipe.threads):
        result = run_benchmark(variants, frames, rounds=recipe.rounds, warmup=recipe.warmup, threads=recipe.threads)
    return result.to_dict()


def spread(tokens: list[str], count: int) -> list[str]:
    """`count` tokens evenly over the list, or all where there are fewer."""
    count = min(count, len(tokens))
    return [tokens[index * len(tokens) // count] for index in range(count)]


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
