"""L0: what the launcher of a job (mpiexec, srun, torchrun) says about this process, in environment variables."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

_RESERVED_STEPS = 0xFFFFFF00  # SLURM's step numbers from here on: a batch script, an interactive shell, ...


@dataclass(frozen=True)
class Place:
    """What the environment says about this process; None if the environment does not say it."""

    launcher: str
    rank: int = 0
    size: int | None = 1
    local_rank: int | None = 0

    @property
    def has_mpi(self) -> bool:
        """True if the processes can find each other by MPI."""
        return self.launcher not in ("none", "torchrun")


def place(environ: Mapping[str, str]) -> Place:
    """Find the rank, the number of ranks and the rank on this machine in environment variables.

    A launcher may itself run within another one, such as mpiexec within a SLURM job: the most specific variables count.

        Open MPI             OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK
        MPICH, Intel MPI     PMI_RANK, PMI_SIZE, MPI_LOCALRANKID
        torchrun, Kubernetes RANK, WORLD_SIZE, LOCAL_RANK
        PMIx                 PMIX_RANK; the size is SLURM's, or MPI says it
        SLURM, in srun       SLURM_PROCID, SLURM_STEP_NUM_TASKS (or SLURM_NTASKS), SLURM_LOCALID

    A batch script and the shell of salloc are no ranks, although they have SLURM_PROCID=0 and the SLURM_NTASKS of the
    job: SLURM_STEP_ID is missing there, or a reserved number.

    Raises:
        ValueError: a variable is missing or is not an integer, or a rank is not less than the number of ranks.
    """
    if "OMPI_COMM_WORLD_RANK" in environ:
        names = "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"
        return _place(environ, "Open MPI", *names)
    if "PMI_RANK" in environ:
        local = "MPI_LOCALRANKID" if "MPI_LOCALRANKID" in environ else "SLURM_LOCALID"
        return _place(environ, "MPICH", "PMI_RANK", "PMI_SIZE", local)
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _place(environ, "torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK")
    step = _integer(environ, "SLURM_STEP_ID") if "SLURM_PROCID" in environ else None
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"
    in_srun = step is not None and step < _RESERVED_STEPS and (_integer(environ, tasks) or 1) > 1
    if "PMIX_RANK" in environ:
        size, local_rank = (tasks, "SLURM_LOCALID") if in_srun else (None, None)
        return _place(environ, "PMIx", "PMIX_RANK", size, local_rank)
    if in_srun:
        return _place(environ, "SLURM", "SLURM_PROCID", tasks, "SLURM_LOCALID")
    return Place("none")


def _place(environ: Mapping[str, str], launcher: str, rank: str, size: str | None, local: str | None) -> Place:
    values = [None if name is None else _integer(environ, name) for name in (rank, size, local)]
    for name, value in ((rank, values[0]), (size, values[1])):
        if name is not None and value is None:
            raise ValueError(
                f"{launcher} sets {rank} and {size}, but {name} is missing: start all ranks with one launcher, such as "
                "mpiexec -n 4, or unset the other variable to run one process alone"
            )
    assert values[0] is not None
    if values[1] is not None and not max(values[0], values[2] or 0) < values[1]:
        shown = ", ".join(f"{n}={environ[n]}" for n in (rank, size, local) if n is not None and n in environ)
        raise ValueError(f"ranks count from 0 to the number of ranks minus 1, got {shown}")
    return Place(launcher, values[0], values[1], values[2])


def _integer(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.strip().isdigit()):
        raise ValueError(f"the environment variable {name} must be an integer of at least 0, got {text!r}")
    if name.endswith(("SIZE", "NUM_TASKS", "NTASKS")) and int(text) < 1:
        raise ValueError(f"the environment variable {name}, the number of ranks, must be at least 1, got {text!r}")
    return int(text)


def end_job(code: int) -> None:
    """Tell MPICH's launcher, by its protocol PMI-1, to end all ranks; other launchers see the exit code alone.

    MPICH's launcher does not end the ranks after a rank that exits before MPI_Init.
    """
    with suppress(KeyError, ValueError, OSError):
        os.write(int(os.environ["PMI_FD"]), f"cmd=abort exitcode={code}\n".encode())
