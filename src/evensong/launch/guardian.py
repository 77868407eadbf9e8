"""Outlives the launcher by a moment: when the launcher is gone, however it went, this ends what it had started.

The launcher writes one line a session to this process's standard input: `+ID` when a component starts, `-ID` when it
has ended. The end of that input means that the launcher is gone. Whole sessions are ended, so that the workers of a
component go with it, which a parent-death signal on the component alone would not do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterable

import psutil

GRACE_SECONDS = 5.0


def main() -> None:
    """Listen until the launcher is gone, then end what it left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sessions: set[int] = set()
    for line in sys.stdin:
        change = sessions.add if line.startswith("+") else sessions.discard
        change(int(line[1:]))
    end_sessions(sessions, GRACE_SECONDS)


def end_sessions(sessions: Iterable[int], grace_seconds: float) -> None:
    """Ask every process of the sessions to end, and kill those that have not after the grace."""
    sessions = set(sessions)
    signal_all(sessions, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while members(sessions) and time.monotonic() < deadline:
        time.sleep(0.1)
    while members(sessions):
        signal_all(sessions, signal.SIGKILL)
        time.sleep(0.05)


def signal_all(sessions: set[int], number: signal.Signals) -> None:
    """Send a signal to every process of the sessions."""
    for pid in members(sessions):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def members(sessions: set[int]) -> list[int]:
    """The living processes of the sessions; those that ended and were not reaped do not count."""
    found = []
    for pid in psutil.pids() if sessions else []:
        with contextlib.suppress(ProcessLookupError, PermissionError, psutil.Error):
            if os.getsid(pid) in sessions and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
    return found


if __name__ == "__main__":
    main()
