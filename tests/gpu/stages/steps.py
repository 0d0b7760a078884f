"""Stages `steps` and `compiled`: a training step of minigrad and of PyTorch, on the same weights and the same batch."""

import statistics
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np

from tests.gpu.stages.device import alive, host_seconds, release
from tests.gpu.stages.stage import Options, Parts, Row, failed


class Workload(NamedTuple):
    """A training step in mixed precision, and the goals: the speedups over PyTorch."""

    model: str
    batch: int
    eager: float  # over eager mode
    graphs: float  # over torch.compile with CUDA graphs


WORKLOADS = (  # most important first
    Workload("vit_tiny_cifar", 512, 1.5, 1.0), Workload("vit_base_patch16_224", 128, 1.25, 1.0),
    Workload("swin_tiny_patch4_window7_224", 128, 2.0, 1.0), Workload("convnext_tiny", 128, 1.6, 1.0),
    Workload("vit_tiny_cifar", 128, 3.5, 1.0), Workload("swin_tiny_cifar", 512, 2.0, 1.1),
    Workload("convnext_atto_cifar", 512, 2.0, 1.1),
)  # fmt: skip
WARMUP = 4  # steps before the timed ones: the third captures the CUDA graph
ROUNDS, STEPS = 3, 5  # rounds, and steps of each contender per round
LOSSES = 0.02  # the maximum relative difference of losses in mixed precision


def parts(options: Options) -> Parts:
    """Stage `steps`: training steps against PyTorch's eager mode."""
    contenders = {
        "torch amp": partial(torch_step, amp=True),
        "tf32": partial(ours, amp=False, graphed=False),
        "amp": partial(ours, amp=True, graphed=False),
        "amp graph": partial(ours, amp=True, graphed=True),
    }
    return {title(w): partial(compared, w, contenders, w.eager) for w in WORKLOADS}


def compiled_parts(options: Options) -> Parts:
    """Stage `compiled`: training steps against `torch.compile` with CUDA graphs."""
    contenders = {
        "torch reduce-overhead": partial(torch_step, amp=True, mode="reduce-overhead"),
        "amp graph": partial(ours, amp=True, graphed=True),
    }
    return {title(w): partial(compared, w, contenders, w.graphs) for w in WORKLOADS}


Step = Callable[[], float]


def title(workload: Workload) -> str:
    return f"{workload.model}, batch {workload.batch}"


def compared(workload: Workload, contenders: dict[str, Callable[[Workload], Step]], goal: float) -> Iterator[Row]:
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


@lru_cache(maxsize=1)
def weights_of(model: str) -> dict[str, np.ndarray]:
    """The weights of `models.compare.formula`, in float32."""
    import models
    from minigrad.nn import init
    from models.compare import formula

    with init.skip_init():
        network = formula.fill(models.create_model(model))
    return {name: parameter.data.astype(np.float32) for name, parameter in network.named_parameters()}


def ours(workload: Workload, *, amp: bool, graphed: bool) -> Step:
    import cupy

    import models
    from minigrad import Tensor, autocast, optim
    from minigrad import functional as F
    from minigrad.backend import cublas
    from minigrad.cuda_graph import GraphedStep
    from minigrad.nn import init

    cublas.allow_tf32(True)
    with init.skip_init():
        network = models.create_model(workload.model)
    for name, parameter in network.named_parameters():
        parameter.data = weights_of(workload.model)[name]
    network = network.to("cuda")
    images, labels = inputs(workload.batch, network.img_size, network.num_classes)
    optimizer = optim.AdamW(network.parameters(), lr=1e-4)

    def compute(images: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        with autocast("bfloat16", amp, network.parameters()):
            loss = F.cross_entropy(network(Tensor(images)), Tensor(labels))
        loss.backward()
        optimizer.step()
        return loss.data

    run = GraphedStep(compute, optimizer, warmup=2) if graphed else compute
    x, y = cupy.asarray(images), cupy.asarray(labels)

    def step() -> float:
        loss = run(x, y)
        cupy.cuda.Device().synchronize()
        return float(loss.item())

    return step


@lru_cache(maxsize=1)
def reference(model: str) -> Any:
    from models.compare.references import Reference

    return Reference("timm", model)


def torch_step(workload: Workload, *, amp: bool, mode: str | None = None) -> Step:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    theirs = reference(workload.model)
    network = deepcopy(theirs.network).float().cuda().to(memory_format=torch.channels_last).train()
    for module in network.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    images, labels = inputs(workload.batch, theirs.model.img_size, theirs.model.num_classes)
    x = torch.from_numpy(images).cuda().to(memory_format=torch.channels_last)
    y = torch.from_numpy(labels).cuda()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    run = network if mode is None else torch.compile(network, mode=mode)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16, enabled=amp):
            loss = torch.nn.functional.cross_entropy(run(x), y)
        loss.backward()
        optimizer.step()
        torch.cuda.synchronize()
        return float(loss.item())

    return step


def inputs(batch: int, size: tuple[int, int], classes: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).standard_normal((batch, 3, *size), np.float32)
    return images, np.arange(batch) * 7919 % classes
