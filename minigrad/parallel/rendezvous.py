"""L1: one message from rank 0 to all ranks by a folder, for ranks that MPI does not connect (torchrun, Kubernetes).

    folder/RANK    {"nonce": a random number of this process, "seen": the nonce of rank 0's message, or null}
    folder/0       {"nonce": ..., "message": ..., "readers": the nonces of all ranks whose files rank 0 has read}

A job that was killed may leave files behind, and a new job may find the same folder. So rank r accepts
the message of rank 0 only if rank 0 has read the nonce of rank r, and rank 0 ends only when all ranks have confirmed
the nonce of rank 0.
"""

import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def folder_for(environ: Mapping[str, str], size: int) -> Path:
    """The folder of this job: MINIGRAD_SHARED_FILE, or a folder for temporary files if all ranks are on this machine.

    Raises:
        RuntimeError: there are ranks on other machines, and MINIGRAD_SHARED_FILE is not set.
    """
    job = [environ.get(name, "") for name in ("SLURM_JOB_ID", "SLURM_STEP_ID", "TORCHELASTIC_RUN_ID", "MASTER_PORT")]
    job += [environ.get("TORCHELASTIC_RESTART_COUNT", "")]
    name = "-".join("".join(c for c in part if c.isalnum()) or "0" for part in job)
    if chosen := environ.get("MINIGRAD_SHARED_FILE"):
        return Path(f"{chosen}-{name}")
    here = environ.get("LOCAL_WORLD_SIZE") or environ.get("SLURM_STEP_TASKS_PER_NODE")
    local = {"localhost", "127.0.0.1", "::1", socket.gethostname(), socket.getfqdn()}
    if here != str(size) if here is not None else environ.get("MASTER_ADDR", "localhost") not in local:
        raise RuntimeError(
            f"{size} ranks on several machines need a common path for NCCL's first message: set MINIGRAD_SHARED_FILE "
            "to a path on a shared file system, or start the ranks with mpiexec and pip install mpi4py"
        )
    user = os.getuid() if hasattr(os, "getuid") else 0
    return Path(tempfile.gettempdir(), f"minigrad-{user}-{name}")


def send_to_all(message: str | None, folder: Path, rank: int, size: int, timeout: float) -> str:
    """Return rank 0's message on all ranks.

    Raises:
        TimeoutError: a rank does not come within `timeout` seconds.
    """
    nonce, end = uuid.uuid4().hex, time.monotonic() + timeout
    while time.monotonic() < end:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if rank == 0:
            found = [_read(folder / str(other)) for other in range(1, size)]
            if all(value.get("seen") == nonce for value in found):
                shutil.rmtree(folder, ignore_errors=True)
                assert message is not None
                return message
            readers = [value.get("nonce") for value in found]
            _write(folder / "0", {"nonce": nonce, "message": message, "readers": readers})
        else:
            _write(folder / str(rank), {"nonce": nonce, "seen": None})
            value = _read(folder / "0")
            if nonce in value.get("readers", []):
                _write(folder / str(rank), {"nonce": nonce, "seen": value["nonce"]})
                return str(value["message"])
        time.sleep(0.02)
    missing = [r for r in range(size) if not (folder / str(r)).exists()]
    raise TimeoutError(
        f"rank {rank} of {size}: after {timeout:g} s not all ranks have come to {folder}; no file of ranks {missing}"
    )


def _write(path: Path, value: dict[str, Any]) -> None:
    """Readers see the earlier or the new content, never a part."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # an earlier job has removed the folder: `send_to_all` tries again
        temporary.write_text(json.dumps(value))
        temporary.replace(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
