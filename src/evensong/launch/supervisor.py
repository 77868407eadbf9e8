"""Starts the components of one home, keeps them running, and ends them all together."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import httpx

from evensong.data import storage
from evensong.errors import BusyError, LaunchError
from evensong.launch import components, guardian, secrets
from evensong.launch.components import Component
from evensong.launch.prepare import prepare
from evensong.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

log = logging.getLogger(__name__)

Report = Callable[[str], None]
OnUp = Callable[[dict[str, Any]], None]

#: A component that lived this long is no longer held responsible for its earlier ends.
STEADY_SECONDS = 60.0
MAX_BACKOFF_SECONDS = 30.0
#: Ends before it was ever ready, after which the start is given up.
MAX_EARLY_ENDS = 3
STOP_GRACE_SECONDS = 8.0
LOG_BYTES = 20_000_000


def up(settings: Settings, on_up: OnUp | None = None) -> None:
    """Run everything in the foreground until Ctrl-C or SIGTERM, as `make up` does.

    `on_up` is called once, with `addresses`, `logs`, `home` and `pid`, when every component answers.

    Raises:
        BusyError: this home is already up.
        LaunchError: a port is taken, or a component does not start.
    """
    from rich.console import Console

    console = Console(stderr=True)
    parts = components.all_components(settings)
    stopping = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopping.set()

    def warn(line: str) -> None:
        console.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    begun = time.monotonic()

    def ready(name: str) -> None:
        console.print(f"{name} is ready after {time.monotonic() - begun:.0f} s", highlight=False)

    with hold_launch(settings), _handlers(stop):
        refuse_taken_ports(parts)
        if ignored := components.ignored_variables(settings):
            warn(f"not heeded, for Evensong's settings decide: {', '.join(ignored)} (docs/guides/operations.md)")
        with _doing(console, "preparing Airflow's metadata database"):
            prepare(settings)
        with Supervisor(settings, parts, report=warn) as running:
            with _doing(console, f"starting {', '.join(part.name for part in parts)}"):
                running.wait_ready(timeout=300, stopping=stopping, on_ready=ready)
            if not stopping.is_set():
                console.print(_addresses(settings, parts))
                if on_up:
                    on_up(_as_data(settings, parts))
            while not stopping.wait(0.5):
                pass
            console.print("ending everything")
    console.print("all ended")


def _doing(console: Console, what: str) -> AbstractContextManager[object]:
    """A spinner where somebody watches; a line where the output goes to a file."""
    if console.is_terminal:
        return console.status(what)
    console.print(what, highlight=False)
    return nullcontext()


class Supervisor:
    """Keeps components running: one that ends is started again after a pause that grows, and that is reported."""

    def __init__(self, settings: Settings, parts: Sequence[Component], report: Report = print) -> None:
        self._variables = components.common_variables(settings)
        self._logs = Path(settings.place("logs"))
        self._record = _record(settings)
        self._report = report
        self._children = [_Child(part, self._logs / f"{part.name}.log") for part in parts]
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._guardian: subprocess.Popen[str] | None = None
        self._in_vain: dict[str, str] = {}
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self._logs.mkdir(parents=True, exist_ok=True)
        names = [child.part.name for child in self._children]
        storage.write_json(self._record, {"pid": os.getpid(), "components": names})
        try:
            self._post_guardian()
            for child in self._children:
                self._start(child)
        except BaseException:
            self.stop()
            raise
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End every component: asked first, killed with all its processes when it does not listen."""
        self._stopping.set()
        if self._watcher.is_alive():
            self._watcher.join()
        with self._lock:
            running = [child.process for child in self._children if child.process]
            for process in running:
                process.terminate()
            deadline = time.monotonic() + STOP_GRACE_SECONDS
            while any(process.poll() is None for process in running) and time.monotonic() < deadline:
                time.sleep(0.1)
            # what a component leaves behind, and those that did not listen
            guardian.end_sessions({process.pid for process in running}, grace_seconds=2)
            for process in running:
                process.wait()
        self._dismiss_guardian()

    def pids(self) -> dict[str, int]:
        """The process of each component that runs now."""
        with self._lock:
            return {c.part.name: c.process.pid for c in self._children if c.process and c.process.poll() is None}

    def wait_ready(
        self, timeout: float, stopping: threading.Event | None = None, on_ready: Report | None = None
    ) -> None:
        """Wait until every health address answers, or `stopping` is set; `on_ready` hears each component's name.

        Raises:
            LaunchError: a component keeps ending, or is not ready in time; with the last lines that it wrote.
        """
        deadline = time.monotonic() + timeout
        waiting = list(self._children)
        while waiting and not (stopping and stopping.is_set()):
            for child in list(waiting):
                if child.early_ends >= MAX_EARLY_ENDS:
                    raise LaunchError(
                        f"{child.part.name} ended {child.early_ends} times before it was ready; its last words:\n"
                        f"{_tail(child.log)}\n(all of it: {child.log})"
                    )
                if _healthy(child.part):
                    child.ready = True
                    waiting.remove(child)
                    if on_ready:
                        on_ready(child.part.name)
            if waiting and time.monotonic() > deadline:
                child = waiting[0]
                raise LaunchError(
                    f"{child.part.name} was not ready after {timeout:.0f} s; its last words:\n"
                    f"{_tail(child.log)}\n(all of it: {child.log})"
                )
            time.sleep(0.25)

    def _watch(self) -> None:
        while not self._stopping.wait(0.2):
            with self._lock:
                self._try("the guardian", self._look_after_guardian)
                for child in self._children:
                    self._try(child.part.name, lambda child=child: self._look_after(child))  # type: ignore[misc]

    def _try(self, what: str, look: Callable[[], None]) -> None:
        """Whatever happens to one look, a full disk or no process left to fork, the next one is made."""
        try:
            look()
            self._in_vain.pop(what, None)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            if self._in_vain.get(what) != said:
                self._in_vain[what] = said
                self._tell(f"{what} cannot be looked after ({said}); trying again until it can")

    def _look_after(self, child: _Child) -> None:
        now = time.monotonic()
        if child.process is None:
            if now >= child.start_at:
                # a start that fails is tried again after a pause
                child.start_at = now + MAX_BACKOFF_SECONDS
                self._start(child)
            return
        code = child.process.poll()
        if code is None:
            return
        # what it left behind goes too, or the port stays taken
        guardian.end_sessions({child.process.pid}, grace_seconds=1)
        ended, child.process = child.process.pid, None
        child.ends = 1 if now - child.started_at > STEADY_SECONDS else child.ends + 1
        child.early_ends += not child.ready
        pause = min(2.0 ** (child.ends - 1), MAX_BACKOFF_SECONDS)
        child.start_at = now + pause
        self._tell(f"{child.part.name} ended with {_describe(code)}; starting it again in {pause:.0f} s ({child.log})")
        self._tell_guardian("-", ended)

    def _look_after_guardian(self) -> None:
        if self._guardian is not None and self._guardian.poll() is not None:
            self._tell(f"the guardian ended with {_describe(self._guardian.returncode)}; another takes its post")
            self._dismiss_guardian()
            self._post_guardian()

    def _post_guardian(self) -> None:
        """Start a guardian, and tell it what runs by now."""
        self._guardian = subprocess.Popen(
            [sys.executable, "-m", "evensong.launch.guardian"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        for child in self._children:
            if child.process is not None:
                self._tell_guardian("+", child.process.pid)

    def _dismiss_guardian(self) -> None:
        """Let the guardian end, if it has not yet; what it was told of is ended by then, or told to another."""
        if self._guardian is not None and self._guardian.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._guardian.stdin.close()
            self._guardian.wait()

    def _start(self, child: _Child) -> None:
        if child.log.exists() and child.log.stat().st_size > LOG_BYTES:
            child.log.replace(child.log.with_suffix(".log.1"))
        with child.log.open("ab") as output:
            child.process = subprocess.Popen(
                child.part.command,
                env=self._variables | child.part.variables,
                executable=components.executable(child.part.command[0]),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        child.started_at = time.monotonic()
        self._tell_guardian("+", child.process.pid)

    def _tell_guardian(self, sign: str, session: int) -> None:
        assert self._guardian is not None
        assert self._guardian.stdin is not None
        # one that has just died is followed by another, who is told of everything
        with contextlib.suppress(BrokenPipeError):
            self._guardian.stdin.write(f"{sign}{session}\n")
            self._guardian.stdin.flush()

    def _tell(self, line: str) -> None:
        """Report, where there still is somebody to report to."""
        try:
            self._report(line)
        except Exception:
            log.debug("nobody heard: %s", line)


def supervised(settings: Settings, pid: str) -> frozenset[str] | None:
    """The names of the components that the launcher of this process id looks after; none: it has not said so yet."""
    uri = _record(settings)
    told = storage.read_json(uri) if storage.exists(uri) else {}
    return frozenset(told["components"]) if str(told.get("pid")) == pid else None


def _record(settings: Settings) -> str:
    return settings.place("launch.json")


@contextmanager
def hold_launch(settings: Settings) -> Iterator[None]:
    """Let one launcher at a time run the processes of this home.

    Raises:
        BusyError: another launcher does.
    """
    path = Path(settings.place("launch.lock"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise BusyError(
                f"{settings.home} is already up (process {lock.read().strip() or 'unknown'}); "
                "use that one, end it, or give this one an EVENSONG_HOME and ports of its own"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def refuse_taken_ports(parts: Sequence[Component]) -> None:
    """Look whether every port is free, before anything starts.

    Raises:
        LaunchError: naming each port that is taken and the variable that moves it.
    """
    taken = []
    for part in parts:
        if part.port and not is_free(part.port.host, part.port.number):
            taken.append(
                f"{part.name} needs port {part.port.number} on {part.port.host}, which is taken; "
                f"end what listens there, or set {part.port.variable}"
            )
    if taken:
        raise LaunchError("\n".join(taken))


def is_free(host: str, port: int) -> bool:
    """Whether a server could begin to listen there now."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # a connection that has just ended does not keep a server from listening
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


@dataclass
class _Child:
    part: Component
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_at: float = 0.0
    ends: int = 0
    early_ends: int = 0
    ready: bool = field(default=False)


@contextmanager
def _handlers(stop: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: Mapping[int, object] = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def _healthy(part: Component) -> bool:
    if part.health_url is None:
        return True
    try:
        return httpx.get(part.health_url, timeout=2, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _describe(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _tail(log: Path, lines: int = 15) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return "(nothing)"


def _as_data(settings: Settings, parts: Sequence[Component]) -> dict[str, Any]:
    return {
        "addresses": {part.name: part.address for part in parts if part.address},
        "logs": settings.place("logs"),
        "home": settings.place(),
        "pid": os.getpid(),
    }


def _addresses(settings: Settings, parts: Sequence[Component]) -> str:
    lines = [f"  {part.name:<20} {part.address}" for part in parts if part.address]
    if settings.airflow.auth == "password":
        lines.append(f"  Airflow's user is admin, the password is in {secrets.passwords_file(settings)}")
    return "\n".join(["Evensong is up:", *lines, f"  logs: {settings.place('logs')}", "Ctrl-C ends all."])
