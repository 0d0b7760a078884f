"""Runs Python on several ranks, with a time limit."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).parents[2]
MPIEXEC = next((str(p) for p in [Path(sys.executable).parent / "mpiexec"] if p.exists()), shutil.which("mpiexec"))
needs_mpi = pytest.mark.skipif(
    MPIEXEC is None or find_spec("mpi4py") is None, reason="needs MPI: pip install mpi4py mpich"
)

# Runs in each rank: the output of the rank goes to files of its own.
START = """
import os, runpy, sys
folder, script, *arguments = sys.argv[1:]
rank = os.environ.get("PMI_RANK") or os.environ["OMPI_COMM_WORLD_RANK"]
for stream, name in ((1, "out"), (2, "err")):
    os.dup2(os.open(f"{folder}/{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
sys.argv[:] = [script, *arguments]
if script == "-m":
    sys.argv.pop(0)
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
else:
    runpy.run_path(script, run_name="__main__")
"""


@dataclass(frozen=True)
class Ranks:
    """The exit code of mpiexec, and what each rank printed. `launcher` is mpiexec's own output."""

    code: int
    out: list[str]
    err: list[str]
    launcher: str


def run(
    count: int, code: str | Path, *arguments: str, timeout: float = 60, check: bool = True, **environ: str
) -> Ranks:
    """Run Python code (a string, or the path of a file, or "-m" and a module in `arguments`) on `count` ranks.

    With `check`, a failure of a rank fails the test. `environ` adds environment variables.
    """
    assert MPIEXEC is not None
    with TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        if isinstance(code, Path) or code == "-m":
            script = Path(code)
        else:
            script.write_text(code)
        Path(folder, "start.py").write_text(START)
        threads = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        openmpi = {
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        }
        result = subprocess.run(
            [MPIEXEC, "-n", str(count), sys.executable, str(Path(folder, "start.py")), folder, str(script), *arguments],
            env={**os.environ, **threads, **openmpi, "PYTHONPATH": path, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
            cwd=ROOT,
        )
        out, err = (
            [p.read_text() if (p := Path(folder, f"{rank}.{name}")).exists() else "" for rank in range(count)]
            for name in ("out", "err")
        )
    if check and result.returncode:
        pytest.fail(f"exit code {result.returncode}\n{result.stdout}\n" + "\n".join(err), pytrace=False)
    return Ranks(result.returncode, out, err, result.stdout)
