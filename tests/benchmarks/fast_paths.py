"""The gain of each fast path: its time over that of the reference implementation: python -m tests.benchmarks.fast_paths

Both run in turn, on one thread, in float32; the shapes are those of half a batch in the models. The clock is the CPU
time of this thread, and the best of many rounds counts.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from minigrad import Tensor, tune_cpu, without_fast_paths
from minigrad import functional as F
from models.terminal import escape_unencodable

ROUNDS = 15


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def images(N: int, C: int, H: int) -> np.ndarray:
    """As convolutions leave them: channels-last in memory."""
    return drawn(N, H, H, C).transpose(0, 3, 1, 2)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1], weight, bias)


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.group_norm(x, 32, weight, bias)


def depthwise(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=3, groups=x.shape[1])


def convolution(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight, padding=weight.shape[2] // 2)


def heads(*shape: int) -> np.ndarray:
    """(..., heads, L, E), as a linear layer leaves them: (..., L, heads, E) in memory."""
    *lead, count, L, E = shape
    return drawn(*lead, L, count, E).swapaxes(-2, -3)


CASES: list[tuple[str, Callable[..., Tensor], list[np.ndarray]]] = [
    ("gelu", F.gelu, [drawn(2080, 768)]),
    ("relu", F.relu, [images(16, 128, 32)]),
    *(
        ("layer_norm", layer_norm, [drawn(M, C), drawn(C), drawn(C)])
        for M, C in ((2080, 192), (2080, 768), (25088, 96))
    ),
    *(("group_norm", group_norm, [images(*s), drawn(s[1]), drawn(s[1])]) for s in ((8, 128, 32), (8, 512, 8))),
    *(
        ("attention", F.scaled_dot_product_attention, [heads(*s)] * 3)
        for s in ((32, 3, 65, 64), (4, 12, 197, 64), (32, 16, 3, 16, 32), (4, 64, 3, 49, 32))
    ),
    *(
        ("conv2d, 3 x 3", convolution, [images(*s), drawn(s[1], s[1], 3, 3)])
        for s in ((32, 32, 32), (32, 64, 16), (32, 128, 8), (4, 128, 28))
    ),
    ("conv2d, 1 x 1", convolution, [images(32, 256, 16), drawn(64, 256, 1, 1)]),
    *(
        ("conv2d, depthwise 7 x 7", depthwise, [images(*s), drawn(s[1], 1, 7, 7)])
        for s in ((32, 40, 16), (32, 80, 8), (32, 160, 4), (4, 96, 56), (4, 192, 28), (4, 384, 14), (4, 768, 7))
    ),
]


def seconds(work: Callable[[], Any]) -> float:
    start = time.thread_time()
    work()
    return time.thread_time() - start


def main() -> None:
    escape_unencodable()
    tune_cpu()
    print(f"{'':26}{'shape':20}{'forward':>10}{'forward + backward':>20}")
    for name, run, arrays in CASES:

        def forward(run: Any = run, arrays: Any = arrays) -> Tensor:
            return run(*(Tensor(x, requires_grad=True) for x in arrays))

        grad = Tensor(np.ones_like(forward().numpy()))

        def both(forward: Any = forward, grad: Tensor = grad) -> None:
            forward().backward(grad)

        best = np.full((2, 2), np.inf)
        for _ in range(ROUNDS):
            for i, work in enumerate((forward, both)):
                best[0, i] = min(best[0, i], seconds(work))
                with without_fast_paths():
                    best[1, i] = min(best[1, i], seconds(work))
        ratios = best[0] / best[1]
        print(f"{name:26}{' x '.join(map(str, arrays[0].shape)):20}{ratios[0]:10.2f}{ratios[1]:20.2f}")


if __name__ == "__main__":
    main()
