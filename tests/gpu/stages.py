"""The stages of `python -m tests.gpu`. Each yields rows: what, value, unit; `wrong` where a limit is broken."""

import argparse
import importlib.metadata
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

Row = dict[str, Any]
Options = argparse.Namespace


class Stage(NamedTuple):
    run: Callable[[Options], Iterator[Row]]
    seconds: int  # its limit
    without_gpu: bool


def environment(options: Options) -> Iterator[Row]:
    """Versions, the card, and whether cuBLAS can be called directly."""
    yield {"what": "python, numpy", "value": f"{platform.python_version()}, {np.__version__}"}
    for package in ("torch", "timm", "ml_dtypes"):
        try:
            yield {"what": package, "value": importlib.metadata.version(package)}
        except importlib.metadata.PackageNotFoundError:
            yield {"what": package, "value": "not installed"}
    if options.cpu:
        return
    import cupy

    from minigrad import cublas

    runtime = cupy.cuda.runtime
    card = runtime.getDeviceProperties(0)
    yield {"what": "cupy", "value": cupy.__version__}
    yield {"what": "CUDA runtime, driver", "value": f"{runtime.runtimeGetVersion()}, {runtime.driverGetVersion()}"}
    yield {"what": "NVRTC", "value": ".".join(map(str, cupy.cuda.nvrtc.getVersion()))}
    yield {"what": "card", "value": card["name"].decode(), "memory": f"{card['totalGlobalMem'] / 2**30:.0f} GiB"}
    for name in ("cublas", "cublasLt"):
        try:
            yield {"what": f"{name} for ctypes", "value": cublas.load_library(name)._name}
        except RuntimeError as error:
            yield {"what": f"{name} for ctypes", "value": str(error), "wrong": True}


def ceilings(options: Options) -> Iterator[Row]:
    """What the card can do at best: copying, and large matrix products."""
    import cupy

    from minigrad import cublas
    from minigrad.dtypes import as_dtype, cast

    x = cupy.empty(1 << 28, np.float32)
    y = cupy.empty_like(x)
    seconds = on_device(partial(cupy.copyto, y, x))
    yield {"what": "copy, 1 GiB", "value": 2 * x.nbytes / seconds / 1e12, "unit": "TB/s"}
    n = 8192
    for name, tf32 in (("float32", False), ("float32", True), ("float16", False), ("bfloat16", False)):
        a = cast(cupy.random.standard_normal((n, n), np.float32), as_dtype(name))  # zeros would take less power
        cublas.allow_tf32(tf32)
        seconds = on_device(lambda a=a: cublas.matmul(a, a))
        yield {
            "what": f"gemm {n}, {name}{', TF32' if tf32 else ''}",
            "value": 2 * n**3 / seconds / 1e12,
            "unit": "TFLOP/s",
        }
    cublas.allow_tf32(False)
    yield from epilogues()


def epilogues(B: int = 25216, D: int = 768, O: int = 3072) -> Iterator[Row]:  # noqa: E741
    """The products of a layer of B rows, D features in and O out (ViT-Base's widest, 128 images), with an epilogue and
    one by one: how many times as fast; `wrong` where cublasLt has no such product, or another answer."""
    import cupy

    from minigrad import cublas_lt
    from minigrad.backend import gemm
    from minigrad.dtypes import FLOAT32, as_dtype, cast
    from minigrad.ops.matmul import sum_of_rows

    rng = np.random.default_rng(0)
    numbers = [cupy.asarray(rng.standard_normal(shape, np.float32)) for shape in ((B, D), (O, D), (O,), (B, O))]
    for dtype in map(as_dtype, ("bfloat16", "float16", "float32")):
        x, weight, bias, grad_y = (cast(a, dtype) for a in numbers)
        with_bias = partial(cublas_lt.matmul_with_bias, x, weight.T, bias, dtype)
        and_sums = partial(cublas_lt.matmul_and_sums, grad_y.T, x, FLOAT32)

        def bias_apart(x: Any = x, weight: Any = weight, bias: Any = bias) -> Any:
            return gemm(x, weight.T, bias=bias)

        def sums_apart(x: Any = x, grad_y: Any = grad_y) -> Any:
            return gemm(grad_y.T, x, dtype=FLOAT32), sum_of_rows(grad_y, FLOAT32)

        for what, together, apart in (("bias", with_bias, bias_apart), ("sums", and_sums, sums_apart)):
            row: Row = {"what": f"product with {what}, {dtype.name}", "value": "no such product", "wrong": True}
            found, fused = together(), on_device(together)
            with patch("minigrad.cublas_lt.shared", lambda: None):
                exact, alone = apart(), on_device(apart)
            if found is not None:
                pairs = [(found, exact)] if what == "bias" else zip(found, exact, strict=True)
                pairs = [(cast(a, FLOAT32), cast(b, FLOAT32)) for a, b in pairs]
                row["error"] = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
                row |= {"value": alone / fused, "unit": "x", "wrong": row["error"] > 1e-2}
            yield row


def launches(options: Options) -> Iterator[Row]:
    """What a call costs the host, on arrays so small that the card has nothing to do."""
    import cupy

    from minigrad import Tensor, cublas
    from minigrad import functional as F

    x = cupy.zeros((8, 8), np.float32)
    t = Tensor(x, requires_grad=True)
    direct = cublas.CtypesBlas(cublas.load_library(), cupy.empty(cublas.WORKSPACE, np.uint8))
    direct.use_stream(cupy.cuda.get_current_stream().ptr)

    def by_ctypes() -> None:
        with cublas.use_blas(direct):
            cublas.matmul(x, x)

    calls = {
        "cupy: x + x": lambda: x + x,
        "cupy: empty": lambda: cupy.empty((8, 8), np.float32),
        "gemm through CuPy": lambda: cublas.matmul(x, x),
        "gemm through ctypes": by_ctypes,
        "Tensor add": lambda: t + t,
        "gelu, a kernel of ours": lambda: F.gelu(t),
    }
    for name, call in calls.items():
        times = []
        for _ in range(5):
            call()
            cupy.cuda.Device().synchronize()
            start = time.perf_counter()
            for _ in range(300):
                call()
            cupy.cuda.Device().synchronize()
            times.append((time.perf_counter() - start) / 300)
        yield {"what": name, "value": statistics.median(times) * 1e6, "unit": "us"}


def kernels(options: Options) -> Iterator[Row]:
    """Every twin against the op as it is written, in float64 on the CPU; and its time, and its share of a copy's."""
    from minigrad import Tensor, without_twins
    from tests.cupy_on_cpu import in_place_of_cupy
    from tests.gpu.cases import CASES

    bandwidth = None if options.cpu else next(ceilings(options))["value"] * 1e12
    for case in CASES:
        arrays = case.arrays(small=options.cpu)
        with without_twins():
            exact, _ = outcome(case, [x.astype(np.float64) for x in arrays], "cpu")
        with in_place_of_cupy() if options.cpu else nullcontext():
            found, kind = outcome(case, arrays, "cuda")
        error = max(
            abs(a.astype(np.float64) - b).max() / max(abs(b).max(), 1e-3) for a, b in zip(found, exact, strict=True)
        )
        twin = ".cuda." in kind.__module__
        row: Row = {"what": case.name, "value": float(error), "unit": "error", "by": kind.__module__}
        if not (twin and error < case.limit):
            row["wrong"] = True
        if bandwidth:
            tensors = [Tensor(x, requires_grad=True, device="cuda") for x in arrays]
            y = case.call(*tensors)
            grad = Tensor(np.ones(y.shape, y.dtype), device="cuda")
            moved = sum(t.data.nbytes for t in tensors) + case.activations * y.data.nbytes
            run = partial(case.call, *tensors)
            forward, both = on_device(run), on_device(lambda run=run, grad=grad: run().backward(grad))
            row |= {"forward_us": forward * 1e6, "backward_us": (both - forward) * 1e6}
            row["share_of_copy"] = moved / bandwidth / forward
        yield row


def outcome(case: Any, arrays: list[np.ndarray], device: str) -> tuple[list[np.ndarray], type]:
    """Value and gradients on the CPU, and the class that computed them."""
    from minigrad import Tensor
    from minigrad.engine import Output
    from tests.gpu.cases import Last

    tensors = [Tensor(x, requires_grad=True, device=device) for x in arrays]
    y = case.call(*tensors)
    op = y.grad_fn
    while isinstance(op, Last | Output):  # of several outputs
        op = op.edges[0][0]
    grad = case.rounded(np.cos(np.arange(y.data.size))).reshape(y.shape)
    y.backward(Tensor(grad.astype(arrays[0].dtype), device=device))
    return [x.detach().cpu().numpy() for x in (y, *(t.grad for t in tensors))], type(op)


def properties(options: Options) -> Iterator[Row]:
    """The tests of ops and models that run on a device."""
    folder = Path(__file__).parents[2]
    tests = ["tests/test_graph.py", "tests/test_cuda.py", "tests/ops"]
    command = [sys.executable, "-m", "pytest", "-v", "-k", "cuda", *tests]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True)
    passed = 0
    for line in process.stdout:  # type: ignore[union-attr]
        if " PASSED " in line:
            passed += 1
            if passed % 100 == 0:  # so that something is known if time runs out
                yield {"what": "tests passed so far", "value": passed}
        elif " FAILED " in line or " ERROR " in line:
            yield {"what": line.split(" ")[0][-90:], "value": "failed", "wrong": True}
    yield {"what": f"passed of pytest -k cuda {' '.join(tests)}", "value": passed}
    if process.wait():
        raise SystemExit("pytest failed")


class Workload(NamedTuple):
    """A training step to compare; and how many times as fast as PyTorch's in eager mode, and with its CUDA graphs, ours
    is to be, both in mixed precision."""

    model: str
    batch: int
    eager: float
    graphs: float


WORKLOADS = (
    Workload("vit_tiny_cifar", 128, 3.5, 1.0), Workload("vit_tiny_cifar", 512, 1.5, 1.0),
    Workload("swin_tiny_cifar", 512, 2.0, 1.1), Workload("convnext_atto_cifar", 512, 2.0, 1.1),
    Workload("vit_base_patch16_224", 128, 1.25, 1.0), Workload("swin_tiny_patch4_window7_224", 128, 2.0, 1.0),
    Workload("convnext_tiny", 128, 1.6, 1.0),
)  # fmt: skip
ROUNDS, STEPS = 3, 5  # in turn; of each contender in a round
LOSSES = 0.02  # how far losses in mixed precision may be apart, relative


def steps(options: Options) -> Iterator[Row]:
    """A training step, ours and PyTorch's in eager mode, on the same weights and batch."""
    contenders = {
        "amp graph": partial(ours, amp=True, graphed=True),
        "amp": partial(ours, amp=True, graphed=False),
        "tf32": partial(ours, amp=False, graphed=False),
        "torch amp": partial(torchs, amp=True),
        "torch tf32": partial(torchs, amp=False),
    }
    for workload in WORKLOADS:
        yield compared(workload, contenders, "torch amp", workload.eager)


def compiled(options: Options) -> Iterator[Row]:
    """The same beside `torch.compile`, as it is and with CUDA graphs of its own."""
    contenders = {
        "amp graph": partial(ours, amp=True, graphed=True),
        "torch compile": partial(torchs, amp=True, mode="default"),
        "torch reduce-overhead": partial(torchs, amp=True, mode="reduce-overhead"),
    }
    for workload in WORKLOADS:
        yield compared(workload, contenders, "torch reduce-overhead", workload.graphs)


Step = Callable[[], float]


def compared(workload: Workload, contenders: dict[str, Callable[[Workload], Step]], rival: str, goal: float) -> Row:
    """Milliseconds a step of each contender, all in turn; and how many times as fast as the rival the first is."""
    row: Row = {"what": f"{workload.model}, batch {workload.batch}", "value": "failed", "unit": "x", "goal": goal}
    ready: dict[str, Step] = {}
    losses: dict[str, float] = {}
    for name, prepare in contenders.items():
        try:
            ready[name] = prepare(workload)
            losses[name], *_ = (ready[name]() for _ in range(4))  # by the fourth, a graph is there
        except Exception as error:  # out of memory, or a missing package: the others go on
            ready.pop(name, None)
            row[name] = f"{type(error).__name__}: {error}"[:200]
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, step in ready.items():
            times[name] += [timed(step) for _ in range(STEPS)]
    row |= {f"{name}, ms": statistics.median(seconds) * 1e3 for name, seconds in times.items()}
    first = next(iter(contenders))
    if first in ready and rival in ready:
        row["value"] = statistics.median(times[rival]) / statistics.median(times[first])
    row["losses"] = " ".join(f"{loss:.4f}" for loss in losses.values())
    if losses and max(losses.values()) - min(losses.values()) > LOSSES * abs(min(losses.values())):
        row["wrong"] = True
    return row


def ours(workload: Workload, *, amp: bool, graphed: bool) -> Step:
    import cupy

    import models
    from minigrad import Tensor, autocast, cublas, optim
    from minigrad import functional as F
    from minigrad.graph import GraphedStep
    from minigrad.nn import init
    from models.compare import formula

    cublas.allow_tf32(True)
    with init.skip_init():
        network = formula.fill(models.create_model(workload.model)).to(dtype=np.float32).to("cuda")
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


def torchs(workload: Workload, *, amp: bool, mode: str | None = None) -> Step:
    import torch

    from models.compare.references import Reference

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    reference = Reference("timm", workload.model)
    network = reference.network.float().cuda().to(memory_format=torch.channels_last).train()
    for module in network.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    images, labels = inputs(workload.batch, reference.model.img_size, reference.model.num_classes)
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
        return loss.item()

    return step


def inputs(batch: int, size: tuple[int, int], classes: int) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).standard_normal((batch, 3, *size), np.float32)
    return images, np.arange(batch) * 7919 % classes


def training(options: Options) -> Iterator[Row]:
    """The training program, to an accuracy: as a graph, then launch by launch."""
    flags = ["--epochs", "2"]
    if options.data_dir:
        flags = ["--dataset", "cifar10", "--data-dir", options.data_dir, "--model", "vit_tiny_cifar", "--epochs", "3"]
        flags += ["--batch-size", "512", "--lr", "2e-3", "--warmup-epochs", "1"]
    for mode in ("--graph", "--no-graph"):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "train", "--device", "cuda", *flags, mode, "--output", f"{folder}/run"]
            result = subprocess.run(command, capture_output=True, text=True)
            if result.returncode:
                raise RuntimeError(result.stderr[-2000:])
            header, *epochs = (Path(folder) / "run" / "metrics.csv").read_text().splitlines()
        for line in epochs:
            metrics = dict(zip(header.split(","), line.split(","), strict=True))
            yield {
                "what": f"{mode}, epoch {metrics.pop('epoch')}",
                "value": float(metrics.pop("test_acc")),
                "unit": "accuracy",
                **metrics,
            }


def on_device(work: Callable[[], Any], rounds: int = 5, repeats: int = 10) -> float:
    """Seconds from one call to the next, by the card's clock: where it has little to do, that is what Python takes."""
    import cupy

    work()
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    times = []
    for _ in range(rounds):
        start.record()
        for _ in range(repeats):
            work()
        end.record()
        end.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, end) / 1e3 / repeats)
    return statistics.median(times)


def timed(step: Callable[[], Any]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


STAGES = {
    "environment": Stage(environment, 30, without_gpu=True),
    "ceilings": Stage(ceilings, 40, without_gpu=False),
    "launches": Stage(launches, 25, without_gpu=False),
    "kernels": Stage(kernels, 100, without_gpu=True),
    "steps": Stage(steps, 110, without_gpu=False),
    "compiled": Stage(compiled, 150, without_gpu=False),
    "training": Stage(training, 65, without_gpu=False),
    "properties": Stage(properties, 80, without_gpu=False),
}
