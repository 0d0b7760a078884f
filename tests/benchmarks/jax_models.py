"""ViT, ConvNeXt and a training step as functions in JAX, in the letters of `models/vit.py` and `models/convnext.py`.

The parameters p are a dict of arrays with minigrad's names and shapes. The depths and the number of heads are read from
the model of minigrad: a ViT with class token, or a ConvNeXt with layer scale, without dropout.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from models.convnext import ConvNeXt
from models.registry import model_class
from models.vit import VisionTransformer

Parameters = dict[str, jax.Array]
State = tuple[Parameters, Parameters, Parameters, jax.Array]


def linear(p: Parameters, name: str, x: jax.Array) -> jax.Array:
    return x @ p[f"{name}.weight"].T + p[f"{name}.bias"]


def norm(p: Parameters, name: str, x: jax.Array) -> jax.Array:
    """LayerNorm over the last axis."""
    return jax.nn.standardize(x, epsilon=1e-6) * p[f"{name}.weight"] + p[f"{name}.bias"]


def conv(p: Parameters, name: str, x: jax.Array, **options: Any) -> jax.Array:
    """Images (B, H, W, C); weights (outputs, C / groups, KH, KW)."""
    y = lax.conv_general_dilated(x, p[f"{name}.weight"], dimension_numbers=("NHWC", "OIHW", "NHWC"), **options)
    return y + p[f"{name}.bias"]


def patches(p: Parameters, name: str, x: jax.Array) -> jax.Array:
    """A convolution whose stride equals its kernel size."""
    return conv(p, name, x, window_strides=p[f"{name}.weight"].shape[2:], padding="VALID")


def depthwise(p: Parameters, name: str, x: jax.Array) -> jax.Array:
    return conv(p, name, x, window_strides=(1, 1), padding="SAME", feature_group_count=x.shape[-1])


def mlp(p: Parameters, fc1: str, fc2: str, x: jax.Array) -> jax.Array:
    return linear(p, fc2, jax.nn.gelu(linear(p, fc1, x), approximate=False))


def attention(p: Parameters, name: str, x: jax.Array, heads: int) -> jax.Array:
    B, L, D = x.shape
    qkv = linear(p, f"{name}.qkv", x).reshape(B, L, 3, heads, D // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)  # (B, L, 3, heads, D_h) -> 3 x (B, heads, L, D_h)
    y = jax.nn.softmax(q @ k.swapaxes(-2, -1) * (D // heads) ** -0.5) @ v
    return linear(p, f"{name}.proj", y.swapaxes(1, 2).reshape(B, L, D))


def vit(model: VisionTransformer, p: Parameters, x: jax.Array) -> jax.Array:
    """Images (B, C, H, W) to logits (B, num_classes)."""
    x = patches(p, "patch_embed.proj", x.transpose(0, 2, 3, 1))
    x = x.reshape(len(x), -1, x.shape[-1])  # (B, H', W', D) -> (B, N, D)
    x = jnp.concatenate([jnp.broadcast_to(p["cls_token"], (len(x), 1, x.shape[-1])), x], axis=1) + p["pos_embed"]
    for i, block in enumerate(model.blocks):
        x = x + attention(p, f"blocks.{i}.attn", norm(p, f"blocks.{i}.norm1", x), block.attn.num_heads)
        x = x + mlp(p, f"blocks.{i}.mlp.fc1", f"blocks.{i}.mlp.fc2", norm(p, f"blocks.{i}.norm2", x))
    return linear(p, "head", norm(p, "norm", x[:, 0]))


def convnext(model: ConvNeXt, p: Parameters, x: jax.Array) -> jax.Array:
    """Images (B, C, H, W) to logits (B, num_classes)."""
    x = x.transpose(0, 2, 3, 1)
    for s, depth in enumerate(model.depths):
        down = f"downsample_layers.{s}"
        if s == 0:
            x = norm(p, f"{down}.1", patches(p, f"{down}.0", x))
        else:
            x = patches(p, f"{down}.1", norm(p, f"{down}.0", x))
        for name in (f"stages.{s}.{b}" for b in range(depth)):
            y = depthwise(p, f"{name}.dwconv", x)
            y = mlp(p, f"{name}.pwconv1", f"{name}.pwconv2", norm(p, f"{name}.norm", y))
            x = x + p[f"{name}.gamma"] * y
    return linear(p, "head", norm(p, "norm", x.mean((1, 2))))


FORWARDS: dict[type, Callable[..., jax.Array]] = {VisionTransformer: vit, ConvNeXt: convnext}


def supports(name: str) -> bool:
    """True for the name of a ViT or ConvNeXt."""
    return model_class(name) in FORWARDS


def parameters(model: Any) -> Parameters:
    return {name: jnp.array(parameter.numpy()) for name, parameter in model.named_parameters()}


def compiled_forward(model: Any) -> Callable[[Parameters, jax.Array], jax.Array]:
    """The function of parameters and images that returns the logits."""
    return jax.jit(partial(FORWARDS[type(model)], model))


# Training -------------------------------------------------------------------------------------------------------------


def initial_state(model: Any) -> State:
    """p, and AdamW's m, v and t."""
    p = parameters(model)
    return p, jax.tree.map(jnp.zeros_like, p), jax.tree.map(jnp.zeros_like, p), jnp.zeros(())


def compiled_step(model: Any, lr: float) -> Callable[[State, jax.Array, jax.Array], tuple[State, jax.Array]]:
    """A training step with AdamW: the function of state, images and labels that returns the new state and the loss."""
    forward, β1, β2, eps, weight_decay = compiled_forward(model), 0.9, 0.999, 1e-8, 1e-2

    def loss(p: Parameters, images: jax.Array, labels: jax.Array) -> jax.Array:
        log_p = jax.nn.log_softmax(forward(p, images))
        return -jnp.take_along_axis(log_p, labels[:, None], axis=1).mean()

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, images: jax.Array, labels: jax.Array) -> tuple[State, jax.Array]:
        p, m, v, t = state
        value, g = jax.value_and_grad(loss)(p, images, labels)
        t = t + 1
        m = jax.tree.map(lambda m, g: β1 * m + (1 - β1) * g, m, g)
        v = jax.tree.map(lambda v, g: β2 * v + (1 - β2) * g**2, v, g)

        def update(x: jax.Array, m: jax.Array, v: jax.Array) -> jax.Array:
            return (1 - lr * weight_decay) * x - lr * m / (1 - β1**t) / (jnp.sqrt(v / (1 - β2**t)) + eps)

        return (jax.tree.map(update, p, m, v), m, v, t), value

    return step
