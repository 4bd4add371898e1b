"""A time that a block of Python may take."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class TookTooLong(BaseException):
    """The block's time is up; says the file and line where it was. No Exception, so that none of its own catches it."""


@contextmanager
def deadline(seconds: float, file: str) -> Iterator[None]:
    """Ends what runs inside by TookTooLong after `seconds`, wherever it is: in a loop, asleep, or waiting for a socket.

    The line is the innermost in `file`, else the innermost of all. It works by a signal of its own, since functions
    may use the alarm clock, as math_verify does; it has no effect outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_: int, frame: FrameType | None) -> None:
        raise TookTooLong(_place(frame, file))

    before = signal.signal(signal.SIGUSR2, interrupt)
    main = threading.get_ident()
    timer = threading.Timer(seconds, lambda: signal.pthread_kill(main, signal.SIGUSR2))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR2, before)


def _place(frame: FrameType | None, file: str) -> str:
    innermost = frame
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    found = frame or innermost
    return f"{found.f_code.co_filename}:{found.f_lineno}" if found else file
