"""Stages `steps`, `compiled`, `compiled_others` and `large`: a training step of minigrad and of PyTorch."""

import statistics
from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from tests.gpu.stages.contenders import Step, Workload, ours, torch_step
from tests.gpu.stages.device import alive, host_seconds, release
from tests.gpu.stages.stage import Options, Parts, Row, failed

VIT = (Workload("vit_tiny_cifar", 128, 3.5, 1.0), Workload("vit_tiny_cifar", 512, 1.5, 1.0))
OTHERS = (Workload("swin_tiny_cifar", 512, 2.0, 1.1), Workload("convnext_atto_cifar", 512, 2.0, 1.1))
HYBRID = (Workload("hybrid_cifar", 512, 1.0, 1.0),)
LARGE = (
    Workload("vit_base_patch16_224", 128, 1.25, 1.0), Workload("swin_tiny_patch4_window7_224", 128, 2.0, 1.0),
    Workload("convnext_tiny", 128, 1.6, 1.0),
)  # fmt: skip
WARMUP = 4  # steps before the timed ones: the third captures the CUDA graph
ROUNDS, STEPS = 3, 5  # rounds, and steps of each contender per round
LOSSES = 0.02  # the maximum relative difference of losses in mixed precision

EAGER: dict[str, Callable[[Workload], Step]] = {
    "torch amp": partial(torch_step, amp=True),
    "amp": partial(ours, amp=True, graphed=False),
    "amp graph": partial(ours, amp=True, graphed=True),
}
COMPILED: dict[str, Callable[[Workload], Step]] = {
    "torch reduce-overhead": partial(torch_step, amp=True, mode="reduce-overhead"),
    "amp graph": partial(ours, amp=True, graphed=True),
}


def parts(workloads: tuple[Workload, ...], options: Options) -> Parts:
    """Training steps against PyTorch's eager mode."""
    return {title(w): partial(compared, w, EAGER, w.eager) for w in workloads}


def compiled_parts(workloads: tuple[Workload, ...], options: Options) -> Parts:
    """Training steps against `torch.compile` with CUDA graphs."""
    return {title(w): partial(compared, w, COMPILED, w.graphs) for w in workloads}


def title(workload: Workload) -> str:
    return f"{workload.model}, batch {workload.batch}"


def compared(workload: Workload, contenders: Mapping[str, Callable[[Workload], Step]], goal: float) -> Iterator[Row]:
    """Milliseconds per step of each contender, measured alone, so that a failure does not affect the others. Then the
    first contender (the rival) and the last contender alternate: the speedup of the last over the first."""
    rival, *_, last = contenders
    ready: dict[str, Step] = {}
    losses: dict[str, float] = {}
    for name, prepare in contenders.items():
        what = f"{title(workload)}: {name}"
        try:
            step = prepare(workload)
            losses[name], *_ = (step() for _ in range(WARMUP))
            seconds = statistics.median(host_seconds(step) for _ in range(STEPS))
            yield {"what": what, "value": seconds * 1e3, "unit": "ms", "images_s": workload.batch / seconds}
            if name in (rival, last):  # not all contenders fit into the GPU's memory
                ready[name] = step
        except Exception as error:  # out of memory, or a missing package: continue with the others
            yield failed(what, error)
            if not alive():
                raise
        step = None  # type: ignore[assignment]
        release()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, step in ready.items():
            times[name] += [host_seconds(step) for _ in range(STEPS)]
    row: Row = {"what": f"{title(workload)}: {last} to {rival}", "value": "failed", "unit": "x", "goal": goal}
    if len(ready) == 2:
        row["value"] = statistics.median(times[rival]) / statistics.median(times[last])
    row["losses"] = " ".join(f"{loss:.4f}" for loss in losses.values())
    if losses and not np.ptp(list(losses.values())) <= LOSSES * abs(min(losses.values())):
        row["wrong"] = True
    yield row
