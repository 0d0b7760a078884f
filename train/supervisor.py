"""L7: the end of all ranks, and the name of the rank that was killed. A process alone imports no NumPy here.

If a rank is killed, for example by the kernel for lack of memory, MPI's launcher ends the other ranks without naming
the first. So each rank forks before MPI and CUDA are loaded: the child runs the program, and the parent, the
supervisor, waits for the end of the child.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

_FORWARDED = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_SECONDS = 0.3  # a launcher may lose a line that is printed just before the launcher ends the job
_PR_SET_PDEATHSIG = 1


def ranks() -> tuple[int, int]:
    """The rank of this process and the number of ranks, as far as the launcher says. (0, 1) without a launcher."""
    if not any(name.endswith("RANK") or name == "SLURM_PROCID" for name in os.environ):
        return 0, 1
    from minigrad.parallel.launcher import place  # imports NumPy, which `--help` does not need

    try:
        found = place(os.environ)
    except ValueError:  # `minigrad.parallel.world` raises the same error
        return 0, 1
    return found.rank, found.size or 1


def end_all_ranks(message: str, code: int) -> int:
    """Print `message`, and end all ranks. Returns the exit code for a process alone."""
    rank, size = ranks()
    if size == 1:
        print(message, file=sys.stderr)
        return code
    from minigrad.parallel.launcher import end_job
    from minigrad.parallel.processes import existing_world

    if rank:
        time.sleep(1)  # a wrong flag fails on all ranks: rank 0 is first to print, and ends the others
    if (world := existing_world()) is not None:
        world.abort(message, code)
    print(f"rank {rank} of {size}: {message}", file=sys.stderr, flush=True)
    time.sleep(_SECONDS)
    end_job(code)
    return code


def supervised(main: Callable[[], int]) -> int:
    """Run `main` and return its exit code; one of several ranks runs `main` in a child process.

    If a signal kills the child, one line names the rank and the signal. Signals to this process reach the child. If
    this process is killed, so is the child. Only on Linux: other systems run `main` in this process.
    """
    rank, size = ranks()
    if size == 1 or sys.platform != "linux":
        return main()
    supervisor = os.getpid()
    child = os.fork()
    if not child:
        os.setpgid(0, 0)  # a signal to the process group of the launcher arrives once, from the supervisor
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != supervisor:
            os._exit(128 + signal.SIGKILL)
        return main()
    for number in _FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: os.kill(child, number))
    from minigrad.parallel.launcher import end_job

    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code >= 0:
        return code
    if -code in _FORWARDED:  # a launcher that ends all ranks sends SIGKILL next
        time.sleep(_SECONDS)
    cause = ": by the kernel for lack of memory, by a scheduler or by a person" if -code == signal.SIGKILL else ""
    line = f"rank {rank} of {size} (PID {child} on {socket.gethostname()}) was killed by {signal.Signals(-code).name}"
    os.write(2, f"{line}{cause}; all ranks end\n".encode())
    time.sleep(_SECONDS)
    end_job(128 - code)
    return 128 - code
