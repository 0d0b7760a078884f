"""L7: stop between two steps on SIGINT (Ctrl-C) and SIGTERM (a job scheduler)."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stop_on_signal(stop: threading.Event, announces: bool = True) -> Iterator[list[int]]:
    """Within the block, the first signal sets `stop` and adds its number to the list; a second stops the process.

    `announces`: print that the program will stop.

    Python handles signals in the main thread: in another thread the block changes nothing.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop.set()
        restore()
        if announces:
            os.write(2, b"\nstopping after this step; a second signal stops immediately\n")  # print is not reentrant

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        if before[number] is not signal.SIG_IGN:  # a shell ignores SIGINT for background jobs
            signal.signal(number, handle)
    try:
        yield received
    finally:
        restore()
