"""Open files, of which a process may have few: a bounded number waits for its next read, the others are closed."""

from __future__ import annotations

import os
import threading

_KEPT_OPEN = 64  # files that wait for their next read; a process may usually open 1,024 or 256


class Descriptors:
    """Open files that wait to be read again, the one that waits longest first. Many more files may be known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[int, int] = {}  # the descriptor, and whose it is

    def take(self, owner: int) -> int | None:
        """Give a descriptor of an owner's file, None where none waits. Nobody closes it meanwhile."""
        with self._lock:
            found = next((number for number, its in reversed(list(self._idle.items())) if its == owner), None)
            if found is not None:
                del self._idle[found]
            return found

    def give(self, owner: int, number: int) -> None:
        """Take a descriptor back, and close the one that has waited longest where there are too many."""
        with self._lock:
            self._idle[number] = owner
            oldest = next(iter(self._idle)) if len(self._idle) > _KEPT_OPEN else None
            if oldest is not None:
                del self._idle[oldest]
        if oldest is not None:
            os.close(oldest)

    def close(self, owner: int) -> None:
        """Close what is left of an owner that goes. It may go while the lock is held: the descriptor then ages."""
        if self._lock.acquire(blocking=False):
            try:
                left = [number for number, its in self._idle.items() if its == owner]
                for number in left:
                    del self._idle[number]
            finally:
                self._lock.release()
            for number in left:
                os.close(number)
