"""L7: Ctrl-C, and the signal by which a scheduler ends a job, as a wish that the run fulfils between two steps."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def as_wish(stop: threading.Event) -> Iterator[list[int]]:
    """Within the block, the first signal sets `stop`, and its number is put into the list; a second one acts at once.

    Signals are the main thread's: in another one nothing changes.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        stop.set()
        restore()
        os.write(2, b"\nstopping after this step; once more: at once\n")  # print might have been interrupted itself

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before: dict[int, Any] = {number: signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        if before[number] is not signal.SIG_IGN:  # as in the background of a shell
            signal.signal(number, handle)
    try:
        yield received
    finally:
        restore()
