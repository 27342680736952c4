"""Stopping on SIGINT and SIGTERM between two steps instead of in the middle of one."""

import os
import signal
import threading
from types import FrameType, TracebackType


class StopSignals:
    """While entered, the first SIGINT or SIGTERM only sets `requested`; the next one acts as it did before
    (a second Ctrl-C raises KeyboardInterrupt at once). The old handlers are back after the block.

    Python lets only the main thread handle signals; in any other this does nothing.
    """

    def __init__(self, notice: str = "") -> None:
        self.requested = False
        self._notice = notice
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop) or signal.SIG_DFL
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._restore()

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.requested = True
        self._restore()
        if self._notice:
            os.write(2, f"\n{self._notice}\n".encode())  # print is not safe inside a signal handler

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
