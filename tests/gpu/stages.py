"""The stages of `python -m tests.gpu`, each of parts that do not depend on each other.

A part yields rows: what, value, unit; `wrong` where a limit is broken.
"""

import argparse
import gc
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from copy import deepcopy
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

Row = dict[str, Any]
Options = argparse.Namespace
Parts = dict[str, Callable[[], Iterator[Row]]]


class Stage(NamedTuple):
    parts: Callable[[Options], Parts]  # most important first
    seconds: int  # the limit of all, each process and its start counted in
    part_seconds: int  # the limit of each part
    without_gpu: bool


def failed(what: str, error: BaseException | str) -> Row:
    """The row of what did not come to its end. A package that is not there is nothing wrong."""
    row: Row = {"what": what, "value": "failed"}
    message = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    row["error"] = " ".join(message.split())[-600:]
    if not isinstance(error, ImportError) and type(error).__name__ != "UnsupportedError":
        row["wrong"] = True
    return row


def synchronize() -> None:
    """Wait for the card, if it is in use; raises what went wrong on it meanwhile."""
    if hasattr(sys.modules.get("cupy"), "__file__"):  # the stand-in has none
        sys.modules["cupy"].cuda.Device().synchronize()


def alive() -> bool:
    """Whether the card still works for this process: after an illegal address, say, it never does again."""
    try:
        synchronize()
    except Exception:
        return False
    return True


def release() -> None:
    """Give memory back that nothing needs."""
    gc.collect()
    if hasattr(sys.modules.get("cupy"), "__file__"):
        sys.modules["cupy"].get_default_memory_pool().free_all_blocks()
    if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
        sys.modules["torch"].cuda.empty_cache()


def environment(options: Options) -> Parts:
    """Versions, the card, and whether cuBLAS can be called directly."""
    return {"versions": versions} | ({} if options.cpu else {"card": card, "libraries": libraries})


def versions() -> Iterator[Row]:
    yield {"what": "python, numpy", "value": f"{platform.python_version()}, {np.__version__}"}
    for package in ("torch", "timm", "ml_dtypes"):
        try:
            yield {"what": package, "value": importlib.metadata.version(package)}
        except importlib.metadata.PackageNotFoundError:
            yield {"what": package, "value": "not installed"}


def card() -> Iterator[Row]:
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    yield {"what": "cupy", "value": cupy.__version__}
    yield {"what": "CUDA runtime, driver", "value": f"{runtime.runtimeGetVersion()}, {runtime.driverGetVersion()}"}
    yield {"what": "NVRTC", "value": ".".join(map(str, cupy.cuda.nvrtc.getVersion()))}
    memory = f"{properties['totalGlobalMem'] / 2**30:.0f} GiB"
    yield {"what": "card", "value": properties["name"].decode(), "memory": memory}


def libraries() -> Iterator[Row]:
    from minigrad.backend import cublas

    for name in ("cublas", "cublasLt"):
        try:
            yield {"what": f"{name} for ctypes", "value": cublas.load_library(name)._name}
        except RuntimeError as error:
            yield {"what": f"{name} for ctypes", "value": str(error), "wrong": True}


def ceilings(options: Options) -> Parts:
    """What the card can do at best: copying, and large matrix products; and what an epilogue of a product saves."""
    products = {
        f"gemm, {name}{', TF32' if tf32 else ''}": partial(product, name, tf32)
        for name, tf32 in (("bfloat16", False), ("float16", False), ("float32", True), ("float32", False))
    }
    return {"copy": copy} | products | {f"epilogues, {name}": partial(epilogues, name) for name in EPILOGUES}


@cache
def bandwidth() -> float:
    """Bytes that a copy reads and writes in a second."""
    import cupy

    x = cupy.empty(1 << 28, np.float32)
    y = cupy.empty_like(x)
    return 2 * x.nbytes / on_device(partial(cupy.copyto, y, x))


def copy() -> Iterator[Row]:
    yield {"what": "copy, 1 GiB", "value": bandwidth() / 1e12, "unit": "TB/s"}


def product(name: str, tf32: bool, n: int = 8192) -> Iterator[Row]:
    import cupy

    from minigrad.backend import cublas
    from minigrad.backend.dtypes import as_dtype, cast

    numbers = np.random.default_rng(0).standard_normal((n, n), np.float32)  # zeros would take less power
    a = cast(cupy.asarray(numbers), as_dtype(name))
    cublas.allow_tf32(tf32)
    seconds = on_device(lambda: cublas.matmul(a, a))
    cublas.allow_tf32(False)
    what = f"gemm {n}, {name}{', TF32' if tf32 else ''}"
    yield {"what": what, "value": 2 * n**3 / seconds / 1e12, "unit": "TFLOP/s"}


EPILOGUES = ("bfloat16", "float16", "float32")


def epilogues(name: str, B: int = 25216, D: int = 768, O: int = 3072) -> Iterator[Row]:  # noqa: E741
    """The products of a layer of B rows, D features in and O out (ViT-Base's widest, 128 images), with an epilogue and
    one by one: how many times as fast; `wrong` where cublasLt has no such product, or another answer."""
    import cupy

    from minigrad.backend import cublas_lt, gemm
    from minigrad.backend.dtypes import FLOAT32, as_dtype, cast
    from minigrad.ops.matmul import sum_of_rows

    rng = np.random.default_rng(0)
    numbers = [cupy.asarray(rng.standard_normal(shape, np.float32)) for shape in ((B, D), (O, D), (O,), (B, O))]
    dtype = as_dtype(name)
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
        with patch("minigrad.backend.cublas_lt.shared", lambda: None):
            exact, alone = apart(), on_device(apart)
        if found is not None:
            pairs = [(found, exact)] if what == "bias" else zip(found, exact, strict=True)
            pairs = [(cast(a, FLOAT32), cast(b, FLOAT32)) for a, b in pairs]
            row["error"] = max(float(abs(a - b).max() / abs(b).max()) for a, b in pairs)
            row |= {"value": alone / fused, "unit": "x", "wrong": not row["error"] <= 1e-2}
        yield row


def launches(options: Options) -> Parts:
    """What a call costs the host, on arrays so small that the card has nothing to do."""
    return {name: partial(launch, name, prepare) for name, prepare in LAUNCHES.items()}


def launch(name: str, prepare: Callable[[Any], Callable[[], Any]], calls: int = 300) -> Iterator[Row]:
    import cupy

    call, times = prepare(cupy.zeros((8, 8), np.float32)), []
    for _ in range(5):
        call()
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        cupy.cuda.Device().synchronize()
        times.append((time.perf_counter() - start) / calls)
    yield {"what": name, "value": statistics.median(times) * 1e6, "unit": "us"}


def by_cupy(x: Any) -> Callable[[], Any]:
    from minigrad.backend import cublas

    return lambda: cublas.matmul(x, x)


def by_ctypes(x: Any) -> Callable[[], Any]:
    import cupy

    from minigrad.backend import cublas

    direct = cublas.CtypesBlas(cublas.load_library(), cupy.empty(cublas.WORKSPACE, np.uint8))
    direct.use_stream(cupy.cuda.get_current_stream().ptr)

    def call() -> None:
        with cublas.use_blas(direct):
            cublas.matmul(x, x)

    return call


def recorded(op: Callable[[Any], Any], x: Any) -> Callable[[], Any]:
    from minigrad import Tensor

    return partial(op, Tensor(x, requires_grad=True))


def gelu(t: Any) -> Any:
    from minigrad import functional as F

    return F.gelu(t)


LAUNCHES: dict[str, Callable[[Any], Callable[[], Any]]] = {
    "cupy: x + x": lambda x: lambda: x + x,
    "cupy: empty": lambda x: partial(importlib.import_module("cupy").empty, (8, 8), np.float32),
    "gemm through CuPy": by_cupy,
    "gemm through ctypes": by_ctypes,
    "Tensor add": partial(recorded, lambda t: t + t),
    "gelu, a kernel of ours": partial(recorded, gelu),
}


def kernels(options: Options) -> Parts:
    """Every fast path against the reference implementation in float64; its time, and that time over a copy's."""
    from tests.gpu.cases import CASES

    return {case.name: partial(kernel, case, options) for case in CASES}


def kernel(case: Any, options: Options) -> Iterator[Row]:
    """Small arrays against NumPy; on a GPU then whole ones, against the same text on the card: hours less, and NumPy
    has seen it right where it is small."""
    from tests.cupy_on_cpu import in_place_of_cupy

    arrays = case.arrays(small=True)
    with in_place_of_cupy() if options.cpu else nullcontext():
        found, by = outcome(case, arrays, "cuda")
        found = [to_float64(x).get() for x in found]
    errors = {"small": error_of(found, exact(case, arrays, "cpu"))}
    if not options.cpu:
        arrays = case.arrays(small=False)
        found, by = outcome(case, arrays, "cuda")
        errors["large"] = error_of(map(to_float64, found), exact(case, arrays, "cuda"))
    row: Row = {"what": case.name, "value": max(errors.values()), "unit": "error", **errors, "by": by.__module__}
    if not (".cuda." in by.__module__ and all(error < case.limit for error in errors.values())):
        row["wrong"] = True
    yield row
    if not options.cpu:
        del found
        yield from time_of(case, arrays)


def outcome(case: Any, arrays: list[np.ndarray], device: str) -> tuple[list[Any], type]:
    """Value and gradients where they are, and the class that computed them."""
    from minigrad import Tensor
    from minigrad.autograd.node import Output
    from tests.gpu.cases import Last

    tensors = case.tensors(arrays, device)
    y = case.call(*tensors)
    op = y.grad_fn
    while isinstance(op, Last | Output):  # of several outputs
        op = op.edges[0][0]
    grad = np.resize(case.rounded(np.cos(np.arange(1009.0))), y.shape)
    y.backward(Tensor(grad.astype(arrays[0].dtype), device=device))
    return [x.data for x in (y, *(t.grad for t in tensors))], type(op)


def exact(case: Any, arrays: list[np.ndarray], device: str) -> list[Any]:
    """The same in float64, by the op as it is written."""
    from minigrad import without_fast_paths

    with without_fast_paths():
        return outcome(case, [x.astype(np.float64) for x in arrays], device)[0]


def to_float64(x: Any) -> Any:
    from minigrad.backend.dtypes import FLOAT32, cast

    return cast(x, FLOAT32).astype(np.float64)


def error_of(found: Any, exact: list[Any]) -> float:
    """The largest, relative to the largest entry of each array; NaN if one of them is."""
    return max(
        (float(abs(a - b).max()) / max(float(abs(b).max()), 1e-3) for a, b in zip(found, exact, strict=True)),
        key=lambda error: np.inf if np.isnan(error) else error,
    )


def time_of(case: Any, arrays: list[np.ndarray]) -> Iterator[Row]:
    from minigrad import Tensor

    tensors = case.tensors(arrays, "cuda")
    y = case.call(*tensors)
    grad = Tensor(np.ones(y.shape, y.dtype), device="cuda")
    moved = sum(t.data.nbytes for t in tensors) + case.outputs * y.data.nbytes
    del y

    def both() -> None:
        for t in tensors:
            t.grad = None  # else a sum would be timed, too
        case.call(*tensors).backward(grad)

    forward, all_of_it = on_device(partial(case.call, *tensors)), on_device(both)
    row = {"what": f"{case.name}: time", "value": forward * 1e6, "unit": "us"}
    row |= {"backward_us": (all_of_it - forward) * 1e6, "share_of_copy": moved / bandwidth() / forward}
    yield row


def properties(options: Options) -> Parts:
    """The tests of ops and models that run on a device."""
    return {"tests": tests}


TESTS = (
    "tests/test_cuda_graph.py",
    "tests/models/test_devices.py",
    "tests/train/test_devices.py",
    "tests/autograd/test_autocast.py",
    "tests/backend/test_arrays.py",
    "tests/backend/test_dtypes.py",
    "tests/backend/test_random.py",
    "tests/nn/test_module.py",
    "tests/ops",
)


def tests(chosen: tuple[str, ...] = TESTS, workers: int = min(8, os.cpu_count() or 1)) -> Iterator[Row]:
    command = [sys.executable, "-m", "pytest", "-vv", "--tb=line", "-k", "cuda", *chosen]
    if importlib.util.find_spec("xdist"):  # the first time CuPy compiles every kernel of its own
        command += ["-n", str(workers)]
    passed = 0
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, errors="replace"
    ) as process:
        for line in process.stdout:  # type: ignore[union-attr]
            words = line.split()
            name = next((word for word in words if "::" in word), "")
            if name and "PASSED" in words:
                passed += 1
                if passed % 100 == 0:  # so that something is known if time runs out
                    yield {"what": "tests passed so far", "value": passed}
            elif name and ("FAILED" in words or "ERROR" in words) and "-" not in words:  # not those of the summary
                yield {"what": name[-90:], "value": "failed", "wrong": True}
    yield {"what": f"passed of pytest -k cuda {' '.join(chosen)}", "value": passed}
    if process.returncode:
        raise RuntimeError(f"pytest ended with {process.returncode}")


class Workload(NamedTuple):
    """A training step to compare; and how many times as fast as PyTorch's in eager mode, and with its CUDA graphs, ours
    is to be, both in mixed precision."""

    model: str
    batch: int
    eager: float
    graphs: float


WORKLOADS = (  # most important first
    Workload("vit_tiny_cifar", 512, 1.5, 1.0), Workload("vit_base_patch16_224", 128, 1.25, 1.0),
    Workload("swin_tiny_patch4_window7_224", 128, 2.0, 1.0), Workload("convnext_tiny", 128, 1.6, 1.0),
    Workload("vit_tiny_cifar", 128, 3.5, 1.0), Workload("swin_tiny_cifar", 512, 2.0, 1.1),
    Workload("convnext_atto_cifar", 512, 2.0, 1.1),
)  # fmt: skip
WARM, ROUNDS, STEPS = 4, 3, 5  # steps before (by the fourth, a graph is there); rounds in turn; steps of each in one
LOSSES = 0.02  # how far losses in mixed precision may be apart, relative


def steps(options: Options) -> Parts:
    """A training step, ours and PyTorch's in eager mode, on the same weights and batch."""
    contenders = {
        "torch amp": partial(torchs, amp=True),
        "tf32": partial(ours, amp=False, graphed=False),
        "amp": partial(ours, amp=True, graphed=False),
        "amp graph": partial(ours, amp=True, graphed=True),
    }
    return {title(w): partial(compared, w, contenders, w.eager) for w in WORKLOADS}


def compiled(options: Options) -> Parts:
    """The same beside `torch.compile` with CUDA graphs of its own."""
    contenders = {
        "torch reduce-overhead": partial(torchs, amp=True, mode="reduce-overhead"),
        "amp graph": partial(ours, amp=True, graphed=True),
    }
    return {title(w): partial(compared, w, contenders, w.graphs) for w in WORKLOADS}


Step = Callable[[], float]


def title(workload: Workload) -> str:
    return f"{workload.model}, batch {workload.batch}"


def compared(workload: Workload, contenders: dict[str, Callable[[Workload], Step]], goal: float) -> Iterator[Row]:
    """Milliseconds a step of each contender, alone, so that what fails costs the others nothing. Then the first, the
    rival, and the last take turns: how many times as fast the last is."""
    rival, *_, last = contenders
    ready: dict[str, Step] = {}
    losses: dict[str, float] = {}
    for name, prepare in contenders.items():
        what = f"{title(workload)}: {name}"
        try:
            step = prepare(workload)
            losses[name], *_ = (step() for _ in range(WARM))
            seconds = statistics.median(timed(step) for _ in range(STEPS))
            yield {"what": what, "value": seconds * 1e3, "unit": "ms", "images_s": workload.batch / seconds}
            if name in (rival, last):  # all at once would be more than a card has memory for
                ready[name] = step
        except Exception as error:  # out of memory, or a missing package: the others go on
            yield failed(what, error)
            if not alive():
                raise
        step = None  # type: ignore[assignment]
        release()
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, step in ready.items():
            times[name] += [timed(step) for _ in range(STEPS)]
    row: Row = {"what": f"{title(workload)}: {last} to {rival}", "value": "failed", "unit": "x", "goal": goal}
    if len(ready) == 2:
        row["value"] = statistics.median(times[rival]) / statistics.median(times[last])
    row["losses"] = " ".join(f"{loss:.4f}" for loss in losses.values())
    if losses and not np.ptp(list(losses.values())) <= LOSSES * abs(min(losses.values())):
        row["wrong"] = True
    yield row


@lru_cache(maxsize=1)
def weights_of(model: str) -> dict[str, np.ndarray]:
    """Those of the formula, in float32."""
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


def torchs(workload: Workload, *, amp: bool, mode: str | None = None) -> Step:
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


def training(options: Options) -> Parts:
    """The training program, to an accuracy: as a graph, then launch by launch."""
    return {mode: partial(trained, mode, options) for mode in ("--graph", "--no-graph")}


def trained(mode: str, options: Options, device: str = "cuda") -> Iterator[Row]:
    flags = ["--epochs", "2"]
    if options.data_dir:
        flags = ["--dataset", "cifar10", "--data-dir", options.data_dir, "--model", "vit_tiny_cifar", "--epochs", "3"]
        flags += ["--batch-size", "512", "--lr", "2e-3", "--warmup-epochs", "1"]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "train", "--device", device, *flags, mode, "--output", f"{folder}/run"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
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


STAGES = {  # most important first; the whole is done well within ten minutes
    "environment": Stage(environment, 20, 20, without_gpu=True),
    "kernels": Stage(kernels, 125, 25, without_gpu=True),
    "steps": Stage(steps, 130, 60, without_gpu=False),
    "training": Stage(training, 60, 30, without_gpu=False),
    "ceilings": Stage(ceilings, 35, 15, without_gpu=False),
    "launches": Stage(launches, 15, 10, without_gpu=False),
    "properties": Stage(properties, 80, 80, without_gpu=False),
    "compiled": Stage(compiled, 100, 100, without_gpu=False),
}
