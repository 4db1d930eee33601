"""Progress of long runs: tqdm if it is installed, else a plain bar; on a terminal only, silent in logs."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Generic, TextIO, TypeVar

__all__ = ["Progress", "progress", "watched"]

T = TypeVar("T")


class Progress(Generic[T]):
    """Iterates over ``iterable``; :meth:`note` shows a few words beside the bar. This class shows nothing."""

    def __init__(self, iterable: Iterable[T], total: int | None, desc: str, file: TextIO) -> None:
        self.iterable, self.total, self.desc, self.file = iterable, total, desc, file

    def __iter__(self) -> Iterator[T]:
        return iter(self.iterable)

    def note(self, text: str) -> None:
        """Say what is being worked on."""


class _Bar(Progress[T]):
    width = 24

    def __iter__(self) -> Iterator[T]:
        self.done, self.words, self.start = 0, "", time.monotonic()
        self._draw()
        for item in self.iterable:
            yield item
            self.done += 1
            self._draw()
        self.file.write("\n")

    def note(self, text: str) -> None:
        self.words = text
        self._draw()

    def _draw(self) -> None:
        filled = self.width * self.done // max(self.total or 0, self.done, 1)
        seconds = time.monotonic() - self.start
        bar = "#" * filled + "." * (self.width - filled)
        self.file.write(f"\r\x1b[K{self.desc} [{bar}] {self.done}/{self.total or '?'} {seconds:.0f}s {self.words}")
        self.file.flush()


class _Tqdm(Progress[T]):
    def __iter__(self) -> Iterator[T]:
        import tqdm

        self.bar: Any = tqdm.tqdm(self.iterable, total=self.total, desc=self.desc, file=self.file, dynamic_ncols=True, leave=False)
        return iter(self.bar)

    def note(self, text: str) -> None:
        self.bar.set_postfix_str(text)


def progress(
    iterable: Iterable[T], total: int | None = None, desc: str = "", *, quiet: bool = False, file: TextIO | None = None
) -> Progress[T]:
    """``iterable`` with a progress bar on ``file`` (standard error); without one if ``quiet`` or ``file`` is not a terminal.

    Example:
        >>> from nearlinear.progress import progress
        >>> sum(progress(range(4), desc="adding"))
        6
    """
    stream = sys.stderr if file is None else file
    size = len(iterable) if total is None and isinstance(iterable, Sized) else total
    if quiet or not stream.isatty():
        kind: type[Progress[T]] = Progress
    else:
        try:
            import tqdm  # noqa: F401

            kind = _Tqdm
        except ImportError:
            kind = _Bar
    return kind(iterable, size, desc, stream)


@contextmanager
def watched(read: Callable[[], tuple[int, int]], desc: str, *, quiet: bool = False, file: TextIO | None = None) -> Iterator[None]:
    """Draw, while the body runs, how far ``read()`` = (done, total) says that it is; from a thread, as the body may be one long call."""
    over = threading.Event()

    def percents() -> Iterator[int]:
        shown = 0
        while shown < 100:
            over.wait(0.1)
            done, total = read()
            percent = 100 if over.is_set() else min(99, 100 * done // max(total, 1))
            yield from range(shown, percent)
            shown = max(shown, percent)

    bar = progress(percents(), 100, desc, quiet=quiet, file=file)
    thread = threading.Thread(target=deque, args=(bar, 0), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
