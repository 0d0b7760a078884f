"""Stage `smoke`: three training steps of each family, whose losses are those of NumPy; and a short training run."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from tests.gpu.stages import training
from tests.gpu.stages.device import alive, cupy_or_stand_in, release
from tests.gpu.stages.stage import Options, Parts, Row, failed

FAMILIES = ("vit_tiny_cifar", "swin_tiny_cifar", "convnext_atto_cifar", "hybrid_cifar")
SMALL: dict[str, dict[str, Any]] = {  # with --cpu, where kernels run on the CPU (the hybrid's for half a minute)
    "vit_nano_cifar": {"depth": 2, "img_size": 8},
    "swin_nano_cifar": {"depths": (2,), "num_heads": (2,), "img_size": 16},
    "convnext_atto_cifar": {"depths": (1, 1), "dims": (8, 16), "img_size": 8},
}
BATCH, STEPS, LR = 8, 3, 2e-4
MODES = {  # in mixed precision, as a CUDA graph, and the maximum error of a loss, relative to the largest loss
    "float32": (False, False, 1e-3), "float32 graph": (False, True, 1e-3),
    "bfloat16": (True, False, 2e-2), "bfloat16 graph": (True, True, 2e-2),
}  # fmt: skip


def parts(options: Options) -> Parts:
    models = SMALL if options.cpu else {name: {} for name in FAMILIES}
    found: Parts = {name: partial(smoke, name, overrides, options) for name, overrides in models.items()}
    return found if options.cpu else found | {"train": partial(training.short, options)}


def smoke(model: str, overrides: dict[str, Any], options: Options) -> Iterator[Row]:
    """The losses on the GPU against those on the CPU in float32. A failed mode does not affect the others."""
    expected = losses(model, overrides, "cpu", amp=False, graphed=False)
    for mode, (amp, graphed, limit) in MODES.items():
        what = f"{model}: {mode}"
        try:
            with cupy_or_stand_in(options.cpu):
                found = losses(model, overrides, "cuda", amp=amp, graphed=graphed)
        except Exception as error:
            yield failed(what, error)
            if not alive():
                raise
        else:
            error = np.max(np.abs(np.subtract(found, expected))) / max(expected)
            row: Row = {"what": what, "value": float(error), "unit": "error", "losses": texts(found)}
            yield row | {"numpy": texts(expected)} | ({} if error <= limit else {"wrong": True})  # NaN is wrong, too
        release()


def losses(model: str, overrides: dict[str, Any], device: str, *, amp: bool, graphed: bool) -> list[float]:
    """The losses of three steps: if graphed, the second captures the graph, the third replays it."""
    step = prepared(model, overrides, device, amp=amp, graphed=graphed)
    return [step() for _ in range(STEPS)]


def prepared(model: str, overrides: dict[str, Any], device: str, *, amp: bool, graphed: bool) -> Callable[[], float]:
    import models
    from minigrad.nn import init
    from models.compare import formula
    from tests.gpu.stages.contenders import quick_formula, step_of

    with init.skip_init(), quick_formula():
        network = formula.fill(models.create_model(model, **overrides)).to(device, np.float32)
    return step_of(network, BATCH, amp=amp, graphed=graphed, lr=LR, warmup=1)


def texts(values: list[float]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
