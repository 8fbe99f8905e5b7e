"""Rounding against its definition, number by number."""

from __future__ import annotations

import numpy as np
import pytest
from export_graphs import Arrays, graph, node, run

from altermoma.calib.scales import (
    Range,
    rounded,
    rounded_bias,
    rounded_weight,
    signed_scale,
    unsigned_scale,
    weight_scales,
)


@pytest.mark.parametrize("axis", [0, 1])
def test_weights_are_rounded_per_output_channel(axis: int) -> None:
    weight = np.random.default_rng(0).normal(size=(4, 6, 3, 3)).astype(np.float32)
    scales = weight_scales(weight, axis)
    numbers = rounded_weight(weight, scales, axis)
    for index, value in np.ndenumerate(weight):
        channel = weight.take(index[axis], axis).astype(np.float64)
        scale = np.float32(np.abs(channel).max() / 127)
        assert numbers[index] == np.clip(round(float(value) / float(scale)), -127, 127)


def test_zeros_stay_zeros_so_that_two_of_four_stay() -> None:
    weight = np.random.default_rng(1).normal(size=(8, 16)).astype(np.float32)
    weight.reshape(8, 4, 4)[:, :, :2] = 0.0
    weight[3] = 0.0
    numbers = rounded_weight(weight, weight_scales(weight, 0), 0)
    assert not numbers[weight == 0].any()
    assert weight_scales(weight, 0)[3] == 1.0


@pytest.mark.parametrize(("low", "high"), [(-1.0, 3.0), (0.0, 6.0), (-2.5, 0.0), (-1e-30, 1e-30)])
def test_activations_are_rounded_as_the_operator_rounds(low: float, high: float) -> None:
    found = Range(low=low, high=high)
    data = np.linspace(1.2 * low - 1e-31, 1.2 * high, 101).astype(np.float32)
    for scale in (signed_scale(found), unsigned_scale(found)):
        weights: Arrays = {"s": np.asarray(scale.scale), "z": np.asarray(scale.zero_point)}
        nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "out")]
        (expected,) = run(graph(nodes, {"x": ("f", [101])}, {"out": ("f", None)}, weights, 19), {"x": data})
        numbers = rounded(data, scale)
        ours = (numbers.astype(np.float32) - np.float32(scale.zero_point)) * scale.scale
        np.testing.assert_allclose(ours, expected, rtol=1e-6)
        # Zero itself is among the numbers: padding and dead rows stay exact.
        assert rounded(np.zeros(1, np.float32), scale)[0] == scale.zero_point


def test_biases_are_in_units_of_both_scales() -> None:
    bias, scales = np.array([0.5, -2.0, 1e9], np.float32), np.array([0.1, 0.2, 1e-6], np.float32)
    found = rounded_bias(bias, np.float32(0.01), scales)
    assert found.tolist() == [500, -1000, np.iinfo(np.int32).max]
