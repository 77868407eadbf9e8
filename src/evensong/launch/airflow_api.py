"""Speaks to Airflow's REST API: is it healthy, start a night, follow it, read what its tasks returned."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx

from evensong.errors import LaunchError
from evensong.launch import secrets
from evensong.settings import Settings, reachable
from evensong.types import Night

DAG = "nightly_retraining"
#: Task id and its new state.
OnTask = Callable[[str, str], None]
PATIENCE_SECONDS = 90.0


class AirflowApi:
    """A client of one Airflow, logged in as the home's admin."""

    def __init__(self, settings: Settings) -> None:
        self.address = f"http://{reachable(settings.airflow.host)}:{settings.airflow.port}"
        # loopback needs no proxy, whatever the environment says
        self._http = httpx.Client(base_url=self.address, timeout=30, trust_env=False)
        self._settings = settings

    def __enter__(self) -> AirflowApi:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def wait_ready(self, timeout: float, dag_id: str = DAG) -> None:
        """Wait until every component is healthy and the DAG is known.

        Raises:
            LaunchError: not in time; naming what is missing, and the DAG's import error if there is one.
        """
        deadline = time.monotonic() + timeout
        missing = "Airflow does not answer"
        while time.monotonic() < deadline:
            try:
                missing = self._missing(dag_id)
                if not missing:
                    return
            except (httpx.TransportError, LaunchError) as error:
                missing = f"Airflow does not answer ({error})"
            time.sleep(0.5)
        raise LaunchError(f"{self.address} was not ready after {timeout:.0f} s: {missing}")

    def health(self) -> dict[str, str]:
        """Each component's own word for how it is."""
        answer = self._http.get("/api/v2/monitor/health").json()
        return {name: str((state or {}).get("status")) for name, state in answer.items()}

    def run(self, run_id: str, dag_id: str = DAG) -> dict[str, Any] | None:
        """A DAG run, or none when there is none of that name."""
        answer = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}", missing=True)
        return answer or None

    def start(self, night: Night, run_id: str, dag_id: str = DAG) -> dict[str, Any]:
        """Start the night, or take up the run of that name: go on where it failed, leave it where it succeeded."""
        self._call("PATCH", f"/api/v2/dags/{dag_id}", {"is_paused": False})
        run = self.run(run_id, dag_id)
        if run is None:
            body = {"dag_run_id": run_id, "logical_date": None, "conf": night.model_dump(mode="json")}
            return self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns", body)
        if run["state"] == "failed":
            self._call("POST", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/clear", {"dry_run": False, "only_failed": True})
        return run

    def follow(
        self, run_id: str, timeout: float, on_task: OnTask | None = None, dag_id: str = DAG
    ) -> dict[str, dict[str, Any]]:
        """Wait until the run has succeeded; its task instances by task id.

        Raises:
            LaunchError: it failed, naming the task and the end of its log; or it took too long.
        """
        deadline = time.monotonic() + timeout
        seen: dict[str, str] = {}
        while True:
            # the run is read first, so that the tasks of a finished run are final
            run = self.run(run_id, dag_id)
            tasks = self.tasks(run_id, dag_id)
            for task_id, task in tasks.items():
                if task["state"] and seen.get(task_id) != task["state"]:
                    seen[task_id] = task["state"]
                    if on_task:
                        on_task(task_id, task["state"])
            if run and run["state"] == "success":
                return tasks
            if run and run["state"] == "failed":
                failed = [task_id for task_id, task in tasks.items() if task["state"] == "failed"]
                words = "\n".join(
                    self.log(run_id, failed[0], tasks[failed[0]]["try_number"], dag_id)[-25:] if failed else []
                )
                raise LaunchError(f"the run {run_id} failed in {', '.join(failed) or 'no task'}:\n{words}")
            if time.monotonic() > deadline:
                raise LaunchError(f"the run {run_id} was not done after {timeout:.0f} s; its tasks: {seen}")
            time.sleep(0.5)

    def tasks(self, run_id: str, dag_id: str = DAG) -> dict[str, dict[str, Any]]:
        """The task instances of a run by task id."""
        answer = self._call("GET", f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances", missing=True)
        return {task["task_id"]: task for task in answer.get("task_instances", [])}

    def returned(self, run_id: str, task_id: str, key: str = "return_value", dag_id: str = DAG) -> Any:
        """What a task returned, or pushed under another key; none when it did not."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/xcomEntries/{key}"
        return self._call("GET", path, missing=True).get("value")

    def log(self, run_id: str, task_id: str, try_number: int, dag_id: str = DAG) -> list[str]:
        """The lines of a task's log."""
        path = f"/api/v2/dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}/logs/{try_number}"
        content = self._call("GET", path, missing=True).get("content", [])
        return [_line(entry) for entry in content]

    def _missing(self, dag_id: str) -> str:
        ill = [name for name, status in self.health().items() if status != "healthy"]
        if ill:
            return f"not healthy: {', '.join(ill)}"
        if self._call("GET", f"/api/v2/dags/{dag_id}", missing=True):
            return ""
        errors = self._call("GET", "/api/v2/importErrors").get("import_errors", [])
        return "; ".join(error["stack_trace"] for error in errors) or f"the DAG {dag_id} is not parsed yet"

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, missing: bool = False
    ) -> dict[str, Any]:
        """One request; an empty answer for what does not exist when `missing` is allowed."""
        answer = self._send(method, path, body)
        if answer.status_code == 401:
            self._log_in()
            answer = self._send(method, path, body)
        if missing and answer.status_code == 404:
            return {}
        if answer.is_error:
            raise LaunchError(
                f"{method} {self.address}{path}: Airflow answered {answer.status_code}: {answer.text[:500]}"
            )
        content: dict[str, Any] = answer.json()
        return content

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        """One request. Reading is tried again for a while: the server may be busy, or start again after a crash."""
        deadline = time.monotonic() + (PATIENCE_SECONDS if method == "GET" else 0)
        while True:
            try:
                return self._http.request(method, path, json=body)
            except httpx.TransportError as error:
                if time.monotonic() > deadline:
                    message = f"{method} {self.address}{path}: Airflow does not answer ({error})"
                    raise LaunchError(message) from error
            time.sleep(1)

    def _log_in(self) -> None:
        body = {"username": "admin", "password": secrets.admin_password(self._settings)}
        answer = self._http.post("/auth/token", json=body)
        if answer.is_error:
            raise LaunchError(
                f"{self.address} refused admin's password ({answer.status_code}); "
                f"compare {secrets.passwords_file(self._settings)} with the one that Airflow runs with"
            )
        self._http.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"


def _line(entry: Any) -> str:
    if not isinstance(entry, dict):
        return str(entry)
    line = f"{entry.get('timestamp') or ''} {entry.get('level', '')} {entry.get('event', '')}".strip()
    for error in entry.get("error_detail") or []:
        line += f"\n{error.get('exc_type')}: {error.get('exc_value')}"
    return line
