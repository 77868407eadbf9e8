"""What `evensong doctor` looks at: the pieces of a home, and the processes that should answer for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from evensong.launch import components
from evensong.launch.components import Component
from evensong.launch.supervisor import is_free, supervised
from evensong.pipelines import doctor
from evensong.pipelines.doctor import Finding, Look
from evensong.pipelines.night import lock_holder
from evensong.settings import Settings, reachable


def examine(settings: Settings) -> list[Finding]:
    """Look at everything; whatever is broken is a finding, never an error."""
    return doctor.examine(settings, {"components": _components})


def _components(settings: Settings) -> Look:
    holder = lock_holder(Path(settings.place("launch.lock")))
    running = supervised(settings, holder[0]) if holder else None
    for part in components.all_components(settings):
        if part.port is not None and part.health_url is not None:
            yield from _component(settings, part, running, is_up=holder is not None)


def _component(settings: Settings, part: Component, running: frozenset[str] | None, *, is_up: bool) -> Look:
    """A component's findings, given which ones the launcher looks after; none: it has started none yet."""
    assert part.port is not None
    assert part.health_url is not None
    log = settings.place("logs", f"{part.name}.log")
    if _answer(part.health_url) is not None:
        if is_up:
            yield "good", f"{part.name} answers at {part.address}"
        else:
            other = f"started by itself, or of another home, beside which this one needs another {part.port.variable}"
            yield "warning", f"{part.name} answers at {part.address}, and no `evensong up` runs for this home: {other}"
        if part.name == "service":
            yield from _service(part.health_url.replace("/healthz", "/readyz"))
        if part.name == "airflow-api-server":
            yield from _airflow(settings)
    elif is_free(part.port.host, part.port.number):
        if is_up and running is None:
            yield "good", f"{part.name} is about to be started"
        elif running is not None and part.name not in running:
            yield "good", f"{part.name} is no part of what runs here now, such as `make demo`"
        elif is_up:
            yield "bad", f"{part.name} is down although `evensong up` runs, which starts it again; read {log}"
        else:
            yield "good", f"{part.name} does not run here, its port {part.port.number} is free; `make up` starts it"
    elif is_up:
        yield "bad", f"{part.name} does not answer at {part.health_url}; read {log}"
    else:
        told = f"port {part.port.number} on {part.port.host} is taken by something that is no {part.name}"
        yield "bad", f"{told}: end it (`ss -ltnp` names it), or set {part.port.variable}"


def _service(readyz: str) -> Look:
    said = _answer(readyz, also=503) or {}
    for warning in said.get("warnings", []):
        yield "warning", f"service: {warning}"
    if problem := said.get("error"):
        yield "warning", f"service: {problem['message']}; {problem['what_to_do']}"


def _airflow(settings: Settings) -> Look:
    airflow = settings.airflow
    parts = _answer(f"http://{reachable(airflow.host)}:{airflow.port}/api/v2/monitor/health") or {}
    for name, state in _states(parts):
        if state != "healthy":
            yield "bad", f"Airflow's {name} is {state}; read its log below {settings.place('logs')}"


def _states(parts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, part in sorted(parts.items()):
        yield name.replace("_", " "), str((part or {}).get("status"))


def _answer(url: str, also: int = 200) -> dict[str, Any] | None:
    """What is said there, if the answer is 200 or `also`; an empty word where it is no JSON."""
    try:
        answer = httpx.get(url, timeout=3, trust_env=False)
    except httpx.HTTPError:
        return None
    if answer.status_code not in (200, also):
        return None
    try:
        said = answer.json()
    except ValueError:
        return {}
    return said if isinstance(said, dict) else {}
