"""A training step of minigrad and of PyTorch, on the same weights and the same batch."""

import zlib
from collections.abc import Callable
from copy import deepcopy
from functools import cache, lru_cache
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from tests.gpu.stages.device import synchronize

Step = Callable[[], float]  # returns the loss


class Workload(NamedTuple):
    """A training step in mixed precision, and the goals: the speedups over PyTorch."""

    model: str
    batch: int
    eager: float  # over eager mode
    graphs: float  # over torch.compile with CUDA graphs


@cache
def _uniform() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, 1_000_003)  # a prime: no two rows of a matrix are equal


def stream(name: str, *shape: int) -> np.ndarray:
    """In place of `models.compare.formula.stream`, which takes 6 s for ViT-Base: the same values for every parameter,
    from an index that depends on the name."""
    return np.resize(np.roll(_uniform(), zlib.crc32(name.encode()) % len(_uniform())), shape)


def quick_formula() -> Any:
    """Within the block, the formula weights of models/compare are made of `stream`."""
    return patch("models.compare.formula.stream", stream)


@lru_cache(maxsize=1)
def weights_of(model: str) -> dict[str, np.ndarray]:
    """Weights of the model, in float32, equal to those of `reference`."""
    import models
    from minigrad.nn import init
    from models.compare import formula

    with init.skip_init():
        network = models.create_model(model)
    with quick_formula():
        return {name: formula.weight(name, *p.shape).astype(np.float32) for name, p in network.named_parameters()}


def ours(
    workload: Workload, *, amp: bool, graphed: bool, device: str = "cuda", lr: float = 1e-4, warmup: int = 2
) -> Step:
    """A step of minigrad. The first `warmup` calls of a graphed step run eagerly, the next captures the graph."""
    import models
    from minigrad.nn import init

    with init.skip_init():
        network = models.create_model(workload.model)
    for name, parameter in network.named_parameters():
        parameter.data = weights_of(workload.model)[name].copy()
    return step_of(network.to(device), workload.batch, amp=amp, graphed=graphed, lr=lr, warmup=warmup)


def step_of(network: Any, batch: int, *, amp: bool, graphed: bool, lr: float, warmup: int) -> Step:
    from minigrad import Tensor, autocast, optim
    from minigrad import functional as F
    from minigrad.backend import cublas, to_device
    from minigrad.cuda_graph import GraphedStep

    cublas.allow_tf32(amp)
    parameters = list(network.parameters())
    images, labels = inputs(batch, network.img_size, network.num_classes)
    optimizer = optim.AdamW(parameters, lr=lr)

    def compute(images: Any, labels: Any) -> Any:
        optimizer.zero_grad()
        with autocast("bfloat16", amp, parameters):
            loss = F.cross_entropy(network(Tensor(images)), Tensor(labels))
        loss.backward()
        optimizer.step()
        return loss.data

    run = GraphedStep(compute, optimizer, warmup=warmup) if graphed else compute
    x, y = (to_device(array, parameters[0].device) for array in (images, labels))

    def step() -> float:
        loss = run(x, y)
        synchronize()
        return float(loss.item())

    return step


@lru_cache(maxsize=1)
def reference(model: str) -> Any:
    from models.compare.references import Reference

    with quick_formula():
        return Reference("timm", model)


def torch_step(workload: Workload, *, amp: bool, mode: str | None = None) -> Step:
    """A step of timm's model; compiled if `mode` is given, for one batch size: a process may have compiled the model
    for another, and would then compile for all sizes."""
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
    run = network
    if mode is not None:
        torch._dynamo.reset()
        run = torch.compile(network, mode=mode, dynamic=False)

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
