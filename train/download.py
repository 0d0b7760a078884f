"""L7: fetch one file over HTTP: resumed where it was cut, checked, and put in place only when it is whole."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from train.errors import InputError
from train.log import Progress

_CHUNK = 1 << 18  # bytes between two moves of the progress bar
_TIMEOUT = 30  # seconds of silence after which the connection counts as cut


def download(url: str, target: Path, md5: str) -> None:
    """Fetch `url` to `target`. What arrives is kept beside it as `target.part`, from which a later call goes on.

    Raises:
        InputError: no connection, the server refuses, the connection was cut (the part is kept), or the file is whole
            but not the one expected (the part is deleted).
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _fetch(url, part)
        found = _md5(part)
        if found != md5:
            part.unlink()
            raise InputError(f"{url} is not the expected file (md5 {found}, not {md5}); deleted, try again")
        os.replace(part, target)
    except urllib.error.HTTPError as error:
        raise InputError(f"cannot download {url}: the server says {error.code} {error.reason}") from None
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", error)
        raise InputError(f"download of {url} failed ({reason}); the same command goes on where it stopped") from None
    except OSError as error:
        raise InputError(f"cannot write {part}: {error.strerror}") from None


def _fetch(url: str, part: Path) -> None:
    """Append to `part` what it lacks of `url`."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing lies beyond what we have: it is whole, or the checksum will tell
            return
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0  # a server without ranges sends everything again
        length = response.headers["Content-Length"]
        total = have + int(length) if length else None
        with part.open("ab" if resumed else "wb") as file, Progress(total, "B", f"download {url}", done=have) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if total is not None and have < total:
        raise ConnectionError(f"the connection was cut after {have} of {total} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
