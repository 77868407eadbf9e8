"""The first thing that a newcomer sees: a simulated shop, three nights through Airflow, a champion, recommendations.

Running it again shows the same and repeats nothing: simulated days are kept, finished nights are recognised, and a demo
that was stopped goes on where it stood. The shop lives on: each later night lives the days before it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from evensong.data import storage
from evensong.errors import RegistryError
from evensong.launch import components
from evensong.launch.airflow_api import AirflowApi
from evensong.launch.prepare import prepare
from evensong.launch.supervisor import Supervisor, hold_launch, refuse_taken_ports
from evensong.settings import Settings
from evensong.types import Night

WARM_UP_DAYS = 21
NUM_NIGHTS = 3
NIGHT_TIMEOUT_SECONDS = 1800.0
BEGINS = (
    f"A shop of made-up customers lives {WARM_UP_DAYS} days, then Airflow runs {NUM_NIGHTS} nights: some ten minutes "
    "in all."
)
KEPT = (
    "A version that is no surer to be better than the champion is not promoted: most nights keep the champion, and say "
    "why."
)
LIVES_ON = (
    "The shop lives on: each night, scheduled or triggered, first lives the days up to its as_of, with the champion's",
    "slates. [bold]evensong simulate --stands-still --days 0[/] leaves that to you.",
)
#: The steps as the DAG names them; the first only reads the form.
STEPS = (
    "plan",
    "ingest",
    "validate",
    "build_features",
    "leak_canary",
    "skew",
    "materialize",
    "build_training_set",
    "train_retriever",
    "train_ranker",
    "build_index",
    "evaluate",
    "bundle",
    "register",
    "gate",
    "promote",
    "feature_report",
)


def run(settings: Settings, *, show: bool = True) -> dict[str, Any]:
    """Live through the demo, or through what is left of it, and `show` what came of it on standard output.

    Returns:
        `nights` (decision, metrics and seconds of each), `days` (click rates), `user` (history and recommendations;
        where nothing can be recommended, `missing` says why) and `addresses`.

    Raises:
        BusyError: there is something to live through, and this home is up.
        LaunchError: a port is taken, Airflow does not start, or a night fails.
    """
    if not _days(settings):
        console = Console(stderr=True)
        console.print(BEGINS, highlight=False)
        with hold_launch(settings), _progress(console) as progress:
            _live_through(settings, progress)
    # what is done is shown beside an Airflow that is up as well
    records = [storage.read_json(_record_uri(settings, night)) for night in _nights(_opening_day(settings))]
    result: dict[str, Any] = {"nights": records, "days": _days(settings), "addresses": _addresses(settings)}
    tell = Console().print if show else lambda _: None
    # what has been lived through is told before anything is asked that may not answer
    tell(_story(result))
    result["user"] = _user(settings)
    tell(_user_story(result["user"]))
    tell(_next_steps(result["addresses"]))
    return result


def _live_through(settings: Settings, progress: Progress) -> None:
    """Every day of the shop with every night that is not done; the days' figures are kept, which says that it is."""
    if _days(settings):
        return
    start = _opening_day(settings)
    nights = _nights(start)
    days = _warm_up(settings, start, progress)
    if missing := [night for night in nights if not storage.exists(_record_uri(settings, night))]:
        with _airflow(settings, progress) as api:
            for night in missing:
                _day_before(settings, start, night)
                _live(settings, api, night, progress)
    days += [day for night in nights for day in _day_before(settings, start, night)]
    storage.write_json(settings.place("demo", "days.json"), days)


def _days(settings: Settings) -> list[dict[str, Any]]:
    """The figures of the days of a demo that is done; none of one that is not."""
    uri = settings.place("demo", "days.json")
    return list(storage.read_json(uri)) if storage.exists(uri) else []


def _opening_day(settings: Settings) -> date:
    """The shop's first day: chosen once, so that the last night's as_of is today's midnight, then kept."""
    uri = settings.place("demo", "demo.json")
    if storage.exists(uri):
        return date.fromisoformat(storage.read_json(uri)["start"])
    start = datetime.now(UTC).date() - timedelta(days=WARM_UP_DAYS + NUM_NIGHTS - 1)
    storage.write_json(uri, {"start": start.isoformat()})
    return start


def _nights(start: date) -> list[Night]:
    days = [start + timedelta(days=WARM_UP_DAYS + number) for number in range(NUM_NIGHTS)]
    return [Night.model_validate({"as_of": day.isoformat()}) for day in days]


def _warm_up(settings: Settings, start: date, progress: Progress) -> list[dict[str, Any]]:
    """The shop's days before the first champion, and their click rates."""
    from evensong.pipelines import simulate

    task = progress.add_task("a shop's first weeks", total=WARM_UP_DAYS)
    result = simulate.run(
        settings,
        days=WARM_UP_DAYS,
        start=start,
        policy="warmup",
        lives_on=True,
        on_day=lambda day: progress.advance(task),
    )
    days: list[dict[str, Any]] = result["days"]
    return days


def _day_before(settings: Settings, start: date, night: Night) -> list[dict[str, Any]]:
    """The day that ends at the night's as_of, its slates filled by the champion; nothing for the first night."""
    from evensong.pipelines import simulate

    day = night.as_of.date() - timedelta(days=1)
    if day < start + timedelta(days=WARM_UP_DAYS):
        return []
    days: list[dict[str, Any]] = simulate.run(settings, days=1, start=day, policy="champion")["days"]
    return days


@contextmanager
def _airflow(settings: Settings, progress: Progress) -> Iterator[AirflowApi]:
    """Airflow alone, for as long as the nights take; no scheduled night falls due meanwhile."""
    settings = _half_a_day_away(settings, datetime.now(UTC))
    parts = components.airflow_components(settings)
    refuse_taken_ports(parts)
    task = progress.add_task("Airflow: database", total=1)
    prepare(settings)
    progress.update(task, description="Airflow: starting")
    with (
        Supervisor(settings, parts, report=lambda line: progress.console.print(line, highlight=False)) as running,
        AirflowApi(settings) as api,
    ):
        running.wait_ready(timeout=240)
        api.wait_ready(timeout=120)
        progress.update(task, description="Airflow: four processes, healthy", completed=1)
        yield api


def _half_a_day_away(settings: Settings, now: datetime) -> Settings:
    """The settings with a schedule that is not due for the next hours."""
    schedule = f"{now.minute} {(now.hour + 12) % 24} * * *"
    return settings.model_copy(update={"airflow": settings.airflow.model_copy(update={"schedule": schedule})})


def _live(settings: Settings, api: AirflowApi, night: Night, progress: Progress) -> None:
    """One night through Airflow's scheduler; what came of it is written when it is done."""
    begun = time.monotonic()
    name = f"night of {night.as_of:%Y-%m-%d}"
    task = progress.add_task(name, total=len(STEPS))
    done: set[str] = set()

    def on_task(task_id: str, state: str) -> None:
        if state == "success":
            done.add(task_id)
            if not progress.console.is_terminal:
                progress.console.print(f"{name}: {task_id} done", highlight=False)
        busy = task_id if state == "running" else ""
        progress.update(task, completed=len(done), description=f"{name} {busy}")

    run_id = f"demo__{night.run_id}"
    api.start(night, run_id)
    tasks = api.follow(run_id, NIGHT_TIMEOUT_SECONDS, on_task)
    progress.update(task, completed=len(STEPS), description=name)
    report = storage.read_json(api.returned(run_id, "evaluate"))
    models = {"challenger": report["challenger"], "champion": report["champion"]} | report["baselines"]
    decision = api.returned(run_id, "gate")
    moved = api.returned(run_id, "promote")
    record = {
        "as_of": night.as_of.isoformat(),
        "dag_run_id": run_id,
        "version": str(api.returned(run_id, "register")),
        "promoted": bool(decision["promote"]),
        "reasons": decision["reasons"],
        "champion": moved["champion"],
        "metrics": {name: model["metrics"] for name, model in models.items() if model},
        "seconds": {step: round(tasks[step]["duration"] or 0.0, 1) for step in STEPS},
        "wall_seconds": round(time.monotonic() - begun, 1),
    }
    storage.write_json(_record_uri(settings, night), record)


def _record_uri(settings: Settings, night: Night) -> str:
    return settings.place("demo", f"{night.run_id}.json")


def _user(settings: Settings, count: int = 20) -> dict[str, Any]:
    """One user who has done enough to be known: the last items they wanted, and what is recommended to them.

    Without a champion nothing is recommended, and `missing` says so: the gate may have kept every night's version.
    """
    from evensong.features.online import OnlineFeatures
    from evensong.serving import once

    online = OnlineFeatures(settings)
    user_id = _well_known_user(settings)
    history = online.users([user_id]).row(0, named=True)
    newest_first = list(reversed(history["recent_item_ids"]))[:count]
    kinds = list(reversed(history["recent_event_types"]))[:count]
    titles = online.items(newest_first)["title"].to_list()
    answer: dict[str, Any] = {"items": [], "model_version": None, "source": None}
    missing = None
    try:
        answer = once.answer(settings, user_id, count)
    except RegistryError as error:
        missing = str(error)
    return {
        "user_id": user_id,
        "history": [
            {"item_id": item, "title": title, "event_type": kind}
            for item, title, kind in zip(newest_first, titles, kinds, strict=True)
        ],
        "recommendations": answer["items"],
        "model_version": answer["model_version"],
        "source": answer["source"],
        "missing": missing,
    }


def _well_known_user(settings: Settings, at_least: int = 20) -> str:
    """The first user by id with that many positive events, or the one with the most."""
    import polars as pl

    uri = storage.join(settings.lake, "features", "user_history")
    counts = (
        pl.scan_delta(uri, storage_options=storage.storage_options(uri))
        .group_by("user_id")
        .agg(pl.col("num_interactions").max())
        .with_columns(pl.col("num_interactions").clip(upper_bound=at_least))
        .sort("num_interactions", "user_id", descending=[True, False])
        .head(1)
        .collect()
    )
    return str(counts["user_id"][0])


def _addresses(settings: Settings) -> dict[str, str]:
    return {part.name: part.address for part in components.all_components(settings) if part.address}


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (SpinnerColumn(), TextColumn("{task.description:<46}"), BarColumn(24), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
        yield progress


def _story(result: dict[str, Any]) -> RenderableType:
    return Group(
        _nights_text(result["nights"]),
        _days_table(result["days"]),
        _seconds_table(result["nights"]),
    )


def _nights_text(nights: list[dict[str, Any]]) -> RenderableType:
    """One line a night: what the gate decided, and why."""
    lines = [Text("\nThe nights", style="italic")]
    for night in nights:
        stays = f"version {night['champion']} stays" if night["champion"] else "there is no champion yet"
        verdict = ("promoted", "green") if night["promoted"] else (f"not promoted, {stays}", "yellow")
        reasons = "; ".join(night["reasons"])
        lines.append(Text.assemble(f"{night['as_of'][:10]}  version {night['version']} ", verdict, f": {reasons}"))
    if any(not night["promoted"] and night["champion"] for night in nights):
        lines.append(Text(KEPT))
    return Group(*lines)


def _days_table(days: list[dict[str, Any]]) -> Table:
    table = Table(title="\nClick rates, and what popularity would have got", title_justify="left")
    for column in ("day", "slates by", "click rate", "popularity's", "gain"):
        table.add_column(column, justify="left" if column in ("day", "slates by") else "right")
    for day in days[WARM_UP_DAYS - 3 :]:
        # compared free of noise: the clicks to expect of these slates, and of popularity's for the same visits
        gain = day["expected_click_rate"] / day["popularity_click_rate"] - 1
        table.add_row(
            str(day["date"]),
            day["policy"],
            f"{day['click_rate']:.2%}",
            f"{day['popularity_click_rate']:.2%}",
            f"{gain:+.0%}",
        )
    return table


def _user_story(user: dict[str, Any]) -> RenderableType:
    if user["missing"] is None:
        return _user_table(user)
    return Text(
        f"\nNothing is recommended to user {user['user_id']} yet: {user['missing']}. `evensong registry list` shows "
        "the versions, `evensong registry show VERSION` what kept each; a later night may be promoted, or "
        '`evensong registry promote VERSION --reason "…"` makes one champion by your word.'
    )


def _user_table(user: dict[str, Any]) -> Table:
    title = f"\nUser {user['user_id']}, by version {user['model_version']} ({user['source']})"
    table = Table(title=title, title_justify="left")
    for column in ("wanted lately", "", "recommended now"):
        table.add_column(column, overflow="fold")
    history, chosen = user["history"], user["recommendations"]
    for row in range(max(len(history), len(chosen))):
        wanted = history[row] if row < len(history) else {"title": "", "event_type": ""}
        item = chosen[row]["title"] if row < len(chosen) else ""
        table.add_row(str(wanted["title"]), str(wanted["event_type"]), str(item))
    return table


def _seconds_table(nights: list[dict[str, Any]]) -> Table:
    table = Table(title="\nSeconds a step took, in Airflow", title_justify="left")
    table.add_column("step")
    for night in nights:
        table.add_column(night["as_of"][:10], justify="right")
    for step in STEPS:
        table.add_row(step, *[f"{night['seconds'][step]:.1f}" for night in nights])
    table.add_row("the night, start to end", *[f"{night['wall_seconds']:.1f}" for night in nights])
    return table


def _next_steps(addresses: dict[str, str]) -> str:
    opened = {
        "airflow-api-server": "the runs; press Trigger on nightly_retraining",
        "mlflow": "the registered model: versions, evidence, the champion",
        "service": "recommendations to look at; /openapi.json is the API",
    }
    lines = [f"  {addresses[name]:<24} {meaning}" for name, meaning in opened.items() if name in addresses]
    return "\n".join(["", "Next: [bold]make up[/], then open", *lines, *LIVES_ON, ""])
