"""Stage `environment`: versions, the GPU, and the libraries that minigrad calls directly."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator

import numpy as np

from tests.gpu.stages.stage import Options, Parts, Row


def parts(options: Options) -> Parts:
    return {"versions": versions} | ({} if options.cpu else {"gpu": gpu, "libraries": libraries})


def versions() -> Iterator[Row]:
    yield {"what": "python, numpy", "value": f"{platform.python_version()}, {np.__version__}"}
    yield {"what": "CPU cores", "value": os.cpu_count()}
    for package in ("torch", "timm", "ml_dtypes"):
        try:
            yield {"what": package, "value": importlib.metadata.version(package)}
        except importlib.metadata.PackageNotFoundError:
            yield {"what": package, "value": "not installed"}


def gpu() -> Iterator[Row]:
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(0)
    yield {"what": "cupy", "value": cupy.__version__}
    yield {"what": "CUDA runtime, driver", "value": f"{runtime.runtimeGetVersion()}, {runtime.driverGetVersion()}"}
    yield {"what": "NVRTC", "value": ".".join(map(str, cupy.cuda.nvrtc.getVersion()))}
    memory = f"{properties['totalGlobalMem'] / 2**30:.0f} GiB"
    yield {"what": "GPU", "value": properties["name"].decode(), "memory": memory}


def libraries() -> Iterator[Row]:
    from minigrad.backend import cublas

    for name in ("cublas", "cublasLt"):
        try:
            yield {"what": f"{name} for ctypes", "value": cublas.load_library(name)._name}
        except RuntimeError as error:
            yield {"what": f"{name} for ctypes", "value": str(error), "wrong": True}
