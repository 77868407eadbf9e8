"""A question to something that may hang: asked in a thread, waited for so long, and for the same answer next time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

T = TypeVar("T")


class Question(Generic[T]):
    """Asks one thing again and again, never twice at once."""

    def __init__(self, name: str, ask: Callable[[], T], *, first_seconds: float, seconds: float) -> None:
        """`first_seconds` is the patience with the first answer, for which libraries are imported as well."""
        self._name, self._ask = name, ask
        self._patience, self._seconds = first_seconds, seconds
        self._waiting: Future[T] | None = None

    def answer(self) -> T:
        """What it says now.

        Raises:
            TimeoutError: nothing yet; the next call waits for the answer to this very question.
        """
        if self._waiting is None:
            self._waiting = Future()
            # a daemon, so that what hangs cannot hold up the end of the process
            threading.Thread(target=self._put, args=(self._waiting,), name=self._name, daemon=True).start()
        seconds, self._patience = self._patience, self._seconds
        wait([self._waiting], timeout=seconds)
        if not self._waiting.done():
            raise TimeoutError(f"no answer within {seconds:g} s")
        answered, self._waiting = self._waiting, None
        return answered.result()

    def _put(self, waiting: Future[T]) -> None:
        try:
            waiting.set_result(self._ask())
        except Exception as error:
            waiting.set_exception(error)
