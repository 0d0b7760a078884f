"""The settings of the process: none by importing, each when asked for, and harmless where it does not apply."""

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


def test_importing_changes_nothing():
    assert run("before = state(); import minigrad, models, train.loop; print(before == state())") == "True"


def test_blas_gets_the_cores_that_are_left():
    cores = os.cpu_count() or 1
    for threads, left in ((1, cores), (cores, 1), (cores + 1, 1)):
        printed = run(f"print(tune.tune_cpu({threads}).blas_threads, state() and state()[0])")
        assert printed == (f"{left} {left}" if HAS_OPENBLAS else f"{left} None")


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_who_has_set_the_threads_knows_better(name):
    printed = run("before = state(); print(tune.tune_cpu(1).blas_threads, before == state())", **{name: "1"})
    assert printed == "None True"


def test_parts_can_be_left_out():
    assert run("print(tune.tune_cpu(1, allocator=False, kernels=False)[1:])") == "(False, None)"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept():
    """The second array of a size takes no new pages."""
    faults = run("""
import resource
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(64 << 20, np.uint8)  # above what glibc keeps by itself
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def settled():
    faults()
    return faults()
plain = settled()
if not tune.tune_cpu(1).allocator:
    print(1, 0)
else:
    print(plain, settled())
""").split()
    plain, tuned = map(int, faults)
    assert tuned < plain / 4


@pytest.mark.skipif(not hasattr(tune._openblas(), "gotoblas_dynamic_init"), reason="NumPy's BLAS cannot change them")
def test_kernels_can_be_changed_and_still_multiply():
    code = """
a, b = np.random.default_rng(0).standard_normal((2, 70, 50)), np.random.default_rng(1).standard_normal((50, 60))
before = a @ b
name = tune._switch_kernels(blas, "Sandybridge")
print(name, "OPENBLAS_CORETYPE" in os.environ, np.allclose(a @ b, before, rtol=1e-12))
"""
    name, set_, right = run(code).split()
    assert set_ == "False" and right == "True"
    assert name == "Sandybridge" or os.uname().machine != "x86_64"


@pytest.mark.parametrize(("flags", "kernels"), [(tune._AVX512, "SkylakeX"), ({"avx2"}, None)])
def test_avx512_is_used_where_the_processor_has_it(flags, kernels, monkeypatch):
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


def test_no_threads_is_a_mistake():
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        tune.tune_cpu(0)
