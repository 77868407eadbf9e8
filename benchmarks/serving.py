"""What one `GET /recommend` takes end to end, against the same features and funnel called in process without HTTP.

The service runs as `evensong serve` does, in a process of its own on loopback; the answers are compared first.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import httpx

from benchmarks._report import report, say
from evensong.settings import Settings, load_settings


def main(argv: list[str]) -> None:
    """Measure and print the figures."""
    options = argparse.ArgumentParser(prog="python -m benchmarks serving", description=__doc__)
    options.add_argument("--home", help="a home with a champion; without it, a shop is simulated and one night run")
    options.add_argument("--requests", type=int, default=1000)
    options.add_argument("--k", type=int, default=20)
    options.add_argument("--connections", type=int, default=4, help="for the throughput")
    chosen = options.parse_args(argv)
    # as the service itself has it, before the libraries that read it are imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="evensong-serving-") as folder:
        port = _free_port()
        serving = {"port": port, "page": True, "max_waiting": 10_000}
        settings = load_settings(home=chosen.home or folder, serving=serving)
        if chosen.home is None:
            _simulate(settings)
        with _running(settings) as client:
            _measure(settings, client, chosen)


def _measure(settings: Settings, client: httpx.Client, chosen: argparse.Namespace) -> None:
    users = [user["user_id"] for user in client.get("/users", params={"limit": 100}).json()["users"]]
    in_process = _in_process(settings)
    differ = 0
    for user in users:
        served = client.get("/recommend", params={"user_id": user, "k": chosen.k}).json()["items"]
        differ += [item["item_id"] for item in served] != [item["item_id"] for item in in_process(user, chosen.k)]
    # the age of the last event is a feature, so two items may change places between two moments
    if differ > len(users) // 20:
        sys.exit(f"{differ} of {len(users)} answers differ between the service and the same call in process")
    say(f"{len(users)} users, {differ} answers differ")
    peer = _times(lambda user: in_process(user, chosen.k), users, chosen.requests)
    ours = _times(
        lambda user: client.get("/recommend", params={"user_id": user, "k": chosen.k}), users, chosen.requests
    )
    rate = _rate(client, users, chosen)
    report(
        benchmark="serving",
        ours=round(ours[0], 3),
        peer=round(peer[0], 3),
        peer_name="the same features and funnel in process, without HTTP (p50)",
        ratio=round(ours[0] / peer[0], 3),
        unit="ms",
        p99_ms=round(ours[1], 3),
        peer_p99_ms=round(peer[1], 3),
        requests_per_second=round(rate),
        connections=chosen.connections,
        k=chosen.k,
        num_items=client.get("/readyz").json()["model"]["num_items"],
        stage_ms=_stages(client),
    )


def _in_process(settings: Settings) -> Callable[[str, int], list[dict[str, Any]]]:
    from evensong.serving import recommend as recommending
    from evensong.serving.champion import Champion
    from evensong.serving.metrics import Metrics

    metrics = Metrics()
    champion = Champion(settings, metrics)
    champion.look()
    in_use = champion.in_use
    if in_use is None:
        sys.exit("; ".join(champion.warnings))
    reader = recommending.UserReader(settings, metrics)

    def answer(user_id: str, k: int) -> list[dict[str, Any]]:
        ask = recommending.Ask("benchmark", user_id, k)
        now = datetime.now(UTC)
        reply = recommending.recommend(
            ask, in_use, champion.features, reader, metrics, filter_rule=settings.serving.filter, now=now
        )
        items: list[dict[str, Any]] = reply.answer["items"]
        return items

    return answer


def _times(call: Callable[[str], object], users: list[str], num_requests: int) -> tuple[float, float]:
    """p50 and p99 in ms, one request at a time."""
    seconds = []
    for number in range(num_requests + 50):
        start = time.perf_counter()
        call(users[number % len(users)])
        seconds.append(time.perf_counter() - start)
    cuts = statistics.quantiles(seconds[50:], n=100)
    return cuts[49] * 1000, cuts[98] * 1000


def _rate(client: httpx.Client, users: list[str], chosen: argparse.Namespace) -> float:
    """Requests a second over several connections: by wrk where it is installed, by our threads otherwise."""
    if wrk := shutil.which("wrk"):
        url = str(client.base_url.join(f"/recommend?user_id={users[0]}&k={chosen.k}"))
        command = [wrk, "-t1", f"-c{chosen.connections}", "-d5", "--latency", url]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        say(out)
        if "Non-2xx" in out:
            sys.exit("some answers were no recommendations")
        return float(out.split("Requests/sec:")[1].split()[0])
    done = [0] * chosen.connections
    stop = time.monotonic() + 5

    def ask(number: int) -> None:
        with httpx.Client(base_url=client.base_url) as own:
            while time.monotonic() < stop:
                own.get(
                    "/recommend", params={"user_id": users[done[number] % len(users)], "k": chosen.k}
                ).raise_for_status()
                done[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(chosen.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / 5


def _stages(client: httpx.Client) -> dict[str, float]:
    """Mean time of each stage, as the service itself counted."""
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for line in client.get("/metrics").text.splitlines():
        for kind, found in (("sum", sums), ("count", counts)):
            if line.startswith(f'evensong_stage_seconds_{kind}{{stage="'):
                found[line.split('"')[1]] = float(line.rsplit(" ", 1)[1])
    return {stage: round(1000 * sums[stage] / counts[stage], 3) for stage in sorted(sums) if counts[stage]}


@contextlib.contextmanager
def _running(settings: Settings) -> Iterator[httpx.Client]:
    command = [sys.executable, "-m", "evensong.cli", "serve", "--port", str(settings.serving.port)]
    variables = os.environ | {"EVENSONG_HOME": str(settings.home.resolve())}
    process = subprocess.Popen(command, env=variables, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{settings.serving.port}", timeout=30) as client:
            deadline = time.monotonic() + 120
            while not _is_ready(client):
                if process.poll() is not None or time.monotonic() > deadline:
                    sys.exit("the service did not become ready; run `evensong serve` with this home to see why")
                time.sleep(0.2)
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _simulate(settings: Settings) -> None:
    from evensong.pipelines import simulate
    from evensong.pipelines.night import run_night
    from evensong.types import Night

    say("simulating a shop and one night")
    days = 8
    begun = simulate.run(settings, days=days, policy="warmup")["start"]
    as_of = date.fromisoformat(str(begun)) + timedelta(days=days)
    result = run_night(
        settings, Night.model_validate({"as_of": as_of}), lambda name, s: say(f"  {name:<16} {s:8.1f} s")
    )
    if result.champion is None:
        from evensong.registry import aliases

        aliases.move(settings, result.version, actor="person:benchmark", reason="the benchmark needs a champion")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
