"""tune_cpu: import changes no settings, each setting takes effect, unsupported systems are not changed."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minigrad.backend import tune

ROOT = Path(__file__).parents[2]
HAS_OPENBLAS = tune._openblas() is not None
STATE = """
import os
import numpy as np
from minigrad.backend import tune
blas = tune._openblas()
def state():
    if blas is None:
        return None
    return tune._function(blas, "get_num_threads")(), tune._kernels(blas)
"""


def run(code: str, **environment: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    result = subprocess.run(
        [sys.executable, "-c", STATE + code],
        env={**clean, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.strip()


def test_import_changes_no_settings():
    assert run("before = state(); import minigrad, models, train.loop; print(before == state())") == "True"


def test_blas_threads_are_cores_divided_by_threads():
    cores = os.cpu_count() or 1
    for threads, expected in ((1, cores), (cores, 1), (cores + 1, 1)):
        printed = run(f"print(tune.tune_cpu({threads}).blas_threads, state() and state()[0])")
        assert printed == (f"{expected} {expected}" if HAS_OPENBLAS else f"{expected} None")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_environment_variables_take_precedence(name):
    printed = run("before = state(); print(tune.tune_cpu(1).blas_threads, before == state())", **{name: "1"})
    assert printed == "None True"


def test_settings_can_be_disabled():
    assert run("print(tune.tune_cpu(1, allocator=False, kernels=False)[1:])") == "(False, None)"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept():
    """The second array of the same size causes few page faults."""
    faults = run("""
import resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)  # larger than glibc keeps by default
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def second():
    faults()
    return faults()
plain = second()
if not tune.tune_cpu(1).allocator:
    print(1, 0)
else:
    print(plain, second())
""").split()
    plain, tuned = map(int, faults)
    assert tuned < plain / 4


@pytest.mark.skipif(not hasattr(tune._openblas(), "gotoblas_dynamic_init"), reason="NumPy's BLAS cannot switch kernels")
def test_switched_kernels_multiply_correctly():
    code = """
a, b = np.random.default_rng(0).standard_normal((2, 70, 50)), np.random.default_rng(1).standard_normal((50, 60))
before = a @ b
name = tune._switch_kernels(blas, "Sandybridge")
print(name, "OPENBLAS_CORETYPE" in os.environ, np.allclose(a @ b, before, rtol=1e-12))
"""
    name, is_set, correct = run(code).split()
    assert is_set == "False" and correct == "True"
    assert name == "Sandybridge" or os.uname().machine != "x86_64"


@pytest.mark.parametrize(("flags", "kernels"), [(tune._AVX512, "SkylakeX"), ({"avx2"}, None)])
def test_avx512_is_used_if_available(flags, kernels, monkeypatch):
    monkeypatch.delenv("OPENBLAS_CORETYPE", raising=False)
    monkeypatch.setattr(tune, "_processor_flags", lambda: flags)
    monkeypatch.setattr(tune, "_kernels", lambda blas: "Zen")
    monkeypatch.setattr(tune, "_switch_kernels", lambda blas, kind: kind)
    blas = SimpleNamespace(gotoblas_dynamic_init=None)
    assert tune._use_avx512(blas) == kernels  # type: ignore[arg-type]
    assert tune._use_avx512(object()) is None  # type: ignore[arg-type]
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    assert tune._use_avx512(blas) is None  # type: ignore[arg-type]
    assert tune._use_avx512(None) is None


def test_zero_threads_are_refused():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        tune.tune_cpu(0)
