"""Measure each CPU fast path: its time divided by the time of the reference implementation. For the blocks of models,
the reference implementation runs with the fast paths of its ops.

    python -m tests.benchmarks.fast_paths

Both run in turn, with one thread, in float32; the shapes are those of half a batch in the models. The clock is the CPU
time of the thread; the best of 15 rounds counts.
"""

import platform
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import numpy as np

from minigrad import Tensor, no_grad, tune_cpu, without_fast_paths
from minigrad import functional as F
from minigrad.ops import updates
from models import convnext, convnextv2, deit, swin, swinv2, vit
from models.terminal import ArgumentParser, escape_unencodable

ROUNDS = 15


def randn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def images(N: int, C: int, H: int) -> np.ndarray:
    """Images (N, C, H, H), channels-last in memory as the output of a convolution."""
    return randn(N, H, H, C).transpose(0, 3, 1, 2)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1], weight, bias)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 32, weight, bias)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=3, groups=x.shape[1])


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[2] // 2)


def heads(*shape: int) -> np.ndarray:
    """Queries (..., heads, L, E) in the layout of a linear layer's output: (..., L, heads, E) in memory."""
    *lead, count, L, E = shape
    return randn(*lead, L, count, E).swapaxes(-2, -3)


CASES: list[tuple[str, Callable[..., Tensor], list[np.ndarray]]] = [
    ("gelu", F.gelu, [randn(2080, 768)]),
    ("relu", F.relu, [images(16, 128, 32)]),
    *(
        ("layer_norm", layer_norm, [randn(M, C), randn(C), randn(C)])
        for M, C in ((2080, 192), (2080, 768), (25088, 96))
    ),
    *(("group_norm", group_norm, [images(*s), randn(s[1]), randn(s[1])]) for s in ((8, 128, 32), (8, 512, 8))),
    *(
        ("attention", F.scaled_dot_product_attention, [heads(*s)] * 3)
        for s in ((32, 3, 65, 64), (4, 12, 197, 64), (32, 16, 3, 16, 32), (4, 64, 3, 49, 32))
    ),
    *(
        ("conv2d, 3 x 3", convolution, [images(*s), randn(s[1], s[1], 3, 3)])
        for s in ((32, 32, 32), (32, 64, 16), (32, 128, 8), (4, 128, 28))
    ),
    ("conv2d, 1 x 1", convolution, [images(32, 256, 16), randn(64, 256, 1, 1)]),
    *(
        ("conv2d, depthwise 7 x 7", depthwise, [images(*s), randn(s[1], 1, 7, 7)])
        for s in (
            *((32, 40, 16), (32, 80, 8), (32, 160, 4)),
            *((N, C, H) for N in (4, 1) for C, H in ((96, 56), (192, 28), (384, 14), (768, 7))),
        )
    ),
]


def swin_block(family: Any, C: int, window: int) -> Any:
    return family.SwinTransformerBlock(C, C // 32, window, True, 4.0, True, 0.0, 0.0, 0.0)


LAST = "ViT's last block"  # computes the class token alone

BLOCKS: list[tuple[str, Callable[[], Any], tuple[int, ...]]] = [
    *(
        ("ConvNeXt's block", partial(convnext.Block, C, 7, 4.0, 0.0, 1.0), (32, C, H, H))
        for C, H in ((40, 16), (80, 8), (160, 4), (320, 2))
    ),
    ("ConvNeXt's block", partial(convnext.Block, 40, 7, 4.0, 0.0, 1.0), (1, 40, 16, 16)),
    *(
        ("ConvNeXt V2's block", partial(convnextv2.Block, C, 7, 4.0, 0.0, None), (N, C, H, H))
        for C, H in ((40, 16), (160, 4))
        for N in (32, 1)
    ),
    *(("ViT's block", partial(vit.Block, 192, 3, 4.0, True, 0.0, 0.0, 0.0), (N, 65, 192)) for N in (32, 1)),
    *((LAST, partial(vit.Block, 192, 3, 4.0, True, 0.0, 0.0, 0.0), (N, 65, 192)) for N in (32, 1)),
    *(
        ("DeiT III's block", partial(deit.Block, 192, 3, 4.0, True, 0.0, 0.0, 0.0, init_values=0.1), (N, 197, 192))
        for N in (8, 1)
    ),
    *(("Swin's block", partial(swin_block, swin, C, 4), (32, H, H, C)) for C, H in ((96, 16), (192, 8))),
    *(
        ("Swin V2's block", partial(swin_block, swinv2, C, 4), (N, H, H, C))
        for C, H in ((96, 16), (192, 8))
        for N in (32, 1)
    ),
]


def seconds(function: Callable[[], Any]) -> float:
    start = time.thread_time()
    function()
    return time.thread_time() - start


def warm_up_blas() -> None:
    """In a new process, products with a small inner axis K, such as those of attention, run at half their speed until
    a product with a larger K has run."""
    x = randn(512, 512)
    x @ x


def ratio(function: Callable[[], Any]) -> float:
    """Time with fast paths over time without."""
    best = [inf, inf]
    for _ in range(ROUNDS):
        best[0] = min(best[0], seconds(function))
        with without_fast_paths():
            best[1] = min(best[1], seconds(function))
    return best[0] / best[1]


def shape(x: np.ndarray) -> str:
    return f"{' x '.join(map(str, x.shape)):20}"


def main() -> None:
    escape_unencodable()
    parser = ArgumentParser(prog="python -m tests.benchmarks.fast_paths", description=__doc__.splitlines()[0])
    parser.parse_args()
    tune_cpu()
    warm_up_blas()
    print(f"{platform.processor() or platform.machine()}, one thread, float32")
    print("time of the fast path / time of the reference implementation (below 1: faster)\n")
    print(f"{'op':26}{'shape':20}{'forward':>10}{'forward + backward':>20}")
    for name, run, arrays in CASES:

        def forward(run: Any = run, arrays: Any = arrays) -> Tensor:
            return run(*(Tensor(x, requires_grad=True) for x in arrays))

        grad = Tensor(np.ones_like(forward().numpy()))

        def forward_backward(forward: Any = forward, grad: Tensor = grad) -> None:
            forward().backward(grad)

        print(f"{name:26}{shape(arrays[0])}{ratio(forward):10.2f}{ratio(forward_backward):20.2f}", flush=True)
    x, g, m, v = abs(randn(4, 3072, 768))
    step = ratio(lambda: updates.adamw(x, g, m, v, 1, 1e-4, 0.9, 0.999, 1e-8, 0.01))
    print(f"{'adamw':26}{shape(x)}{step:10.2f}")
    for name, make, size in BLOCKS:
        block, x = make().eval(), Tensor(randn(*size))
        tokens = [1] if name == LAST else []
        print(f"{name:26}{shape(x.numpy())}{block_ratio(block, x, *tokens):10.2f}", flush=True)


def block_ratio(block: Any, *inputs: Any) -> float:
    """The ratio for a block, in inference."""
    run, reference = type(block).forward, type(block).forward.__wrapped__  # type: ignore[attr-defined]
    best = [inf, inf]
    for _ in range(ROUNDS):
        for i, forward in enumerate((run, reference)):
            with no_grad():
                best[i] = min(best[i], seconds(partial(forward, block, *inputs)))
    return best[0] / best[1]


if __name__ == "__main__":
    main()
