"""Kill ranks of a training run at random moments: do all processes end, in time, with one line that names the rank?

    python -m tests.train.kills [COUNT] [SEED]

Prints a line for each kill, with the seconds from the kill to the end of the last process of the job.
"""

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.parallel.mpiexec import MPIEXEC, ROOT

LIMIT = 30.0  # seconds from a kill to the end of all processes
SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)

# `python -m train`, and each rank notes its PID.
PROGRAM = """
import os, sys
from pathlib import Path
from train.__main__ import main
from train.supervisor import ranks, supervised

folder = Path(sys.argv.pop(1))

def noted():
    Path(folder, f"{os.getpid()}.{ranks()[0]}").touch()
    return main()

sys.exit(supervised(noted))
"""


@dataclass(frozen=True)
class Kill:
    """A run on `size` ranks, in which rank `victim` gets a signal `delay` seconds after its start."""

    size: int
    victim: int
    number: signal.Signals
    delay: float

    def run(self, *flags: str) -> tuple[float, str]:
        """Seconds from the kill to the end of the last process, and the line that names the rank.

        Raises:
            AssertionError: a process is still there after LIMIT seconds, or the rank is not named in exactly one line.
        """
        assert MPIEXEC is not None
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "program.py").write_text(PROGRAM)
            command = [MPIEXEC, "-n", str(self.size), sys.executable, str(folder / "program.py"), name, *flags]
            environ = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
            job = subprocess.Popen(
                [*command, "--output", str(folder / "run")],
                env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip
            try:
                while len(pids := {int(p.suffix[1:]): int(p.stem) for p in folder.glob("[0-9]*.*")}) < self.size:
                    assert job.poll() is None, job.communicate()[0]
                    time.sleep(0.01)
                time.sleep(self.delay)
                assert job.poll() is None, "the run ended before the kill"
                os.kill(pids[self.victim], self.number)
                start = time.monotonic()
                text, _ = job.communicate(timeout=LIMIT)
                while alive := [pid for pid in pids.values() if is_alive(pid)]:
                    assert time.monotonic() - start < LIMIT, f"{self}: {len(alive)} processes are still there\n{text}"
                    time.sleep(0.01)
                seconds = time.monotonic() - start
            finally:
                job.kill()
                for pid in filter(is_alive, pids.values()):
                    os.kill(pid, signal.SIGKILL)
        lines = re.findall(r"rank \d+ of \d+ .*", text)
        assert job.returncode and len(lines) == 1, f"{self}: exit code {job.returncode}\n{text}"
        named = f"rank {self.victim} of {self.size} (PID {pids[self.victim]} on "
        assert lines[0].startswith(named) and f"was killed by {self.number.name}" in lines[0], text
        return seconds, lines[0]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def main() -> None:
    count, seed = (int(x) for x in [*sys.argv[1:], *("30", "0")[len(sys.argv) - 1 :]])
    draw, times = random.Random(seed), []
    for i in range(count):
        size = draw.choice([2, 3, 4])
        kill = Kill(size, i % size, draw.choice(SIGNALS), draw.uniform(0, 8))
        seconds, line = kill.run("--epochs", "50", "--train-num-samples", "400", "--val-num-samples", "50")
        times.append(seconds)
        print(f"{seconds:5.2f} s  after {kill.delay:4.1f} s: {line}", flush=True)
    print(f"{count} kills: median {sorted(times)[count // 2]:.2f} s, at most {max(times):.2f} s")


if __name__ == "__main__":
    main()
