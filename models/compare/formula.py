"""L6: pseudo-random weights and inputs, seeded by their names: equal in every framework, with nothing to store.

SplitMix64 (Steele, Lea, Flood 2014), seeded with the FNV-1a hash of the name; uint64 arithmetic is exact everywhere.
"""

from math import prod
from typing import TypeVar

import numpy as np

from minigrad import nn

Model = TypeVar("Model", bound=nn.Module)


def stream(name: str, *shape: int) -> np.ndarray:
    """Uniform pseudo-random numbers in [-1, 1), float64, determined by the name."""
    seed = 0xCBF29CE484222325
    for byte in name.encode():
        seed = (seed ^ byte) * 0x100000001B3 % 2**64
    z = np.uint64(seed) + np.arange(1, prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (2 * ((z >> np.uint64(11)) * 2.0**-53) - 1).reshape(shape)


def weight(name: str, *shape: int) -> np.ndarray:
    """The formula weights of a parameter: small biases, norm weights near 1, matrices of unit gain."""
    v = stream(name, *shape)
    if name.endswith("gamma"):
        return 0.5 + 0.3 * v
    if name.endswith(("bias", "beta")):
        return 0.1 * v
    if name.endswith("logit_scale"):
        return 2 + v
    if name.endswith(("_token", "pos_embed")):
        return 0.3 * v
    if name.endswith("relative_position_bias_table"):
        return 0.5 * v
    return 1 + 0.3 * v if len(shape) == 1 else v * (3 / prod(shape[1:])) ** 0.5


def fill(model: Model) -> Model:
    """Set all parameters of a model to their formula weights, in float64."""
    for name, parameter in model.named_parameters():
        parameter.data = weight(name, *parameter.shape)
    model.to(dtype=np.float64)
    return model
