"""L7: download a file over HTTP: interrupted downloads are resumed, the checksum is verified."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from train.config.errors import InputError
from train.output.log import Progress

_CHUNK = 1 << 18  # bytes between two updates of the progress bar
_TIMEOUT = 30  # seconds without data after which the download fails


def download(url: str, target: Path, md5: str) -> None:
    """Download `url` to `target`. An incomplete download stays in `target.part`, which the next call resumes.

    Raises:
        InputError: no connection, an HTTP error, a lost connection (`target.part` is kept), or a wrong checksum
            (`target.part` is deleted).
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
        raise InputError(f"download of {url} failed ({reason}); the same command resumes the download") from None
    except OSError as error:
        raise InputError(f"cannot write {part}: {error.strerror}") from None


def _fetch(url: str, part: Path) -> None:
    """Append to `part` the bytes of `url` that `part` lacks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the range is beyond the end: `part` is complete, or the checksum will not match
            return
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0  # a server without range requests sends the entire file
        length = response.headers["Content-Length"]
        total = have + int(length) if length else None
        title = f"download {part.stem}"
        with part.open("ab" if resumed else "wb") as file, Progress(total, "B", title, done=have) as bar:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                bar.update(len(chunk))
    if total is not None and have < total:
        raise ConnectionError(f"connection lost after {have} of {total} bytes")


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
