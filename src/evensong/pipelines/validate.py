"""The second step of a night: GX judges what is new; good rows go to the clean tables, bad ones to the quarantine.

The order of the writes makes a kill at any moment harmless. A night that fails writes its quarantine and leaves the
good rows unjudged, so a rerun judges the same rows and fails the same. A night that passes writes its quarantine, then
its verdict (`validations/` in the lake), then the clean tables; a rerun that finds the verdict on the same raw rows
only finishes the move. A row is judged once: one that a night which went on has quarantined stays there. What a night
that stopped has quarantined counts again in the next one, which takes it over: nobody has let it pass. What a person
has released (`pipelines/quarantine`) is judged again too, and counts on neither side where it is still bad.

An import may come in between at any moment, on any machine. It writes items and users before their events, so events
are read at a version that was taken before those of items and users: none is judged without what it is about.

At last the columns file is held against the clean tables, so that a misspelt attribute stops the night here.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import polars as pl

from evensong.data import expectations, quarantine, sources, storage
from evensong.data.expectations import NO_USER, Judge, Judgement, Rule
from evensong.data.lake import KEYS, RAW, REPEAT, Lake, in_order
from evensong.errors import ConfigurationError, NothingToLearnError, SourceError, ValidationFailedError
from evensong.features.shop_columns import check_sources
from evensong.features.views import check_event_types, declared_views
from evensong.pipelines import docs_pages, simulate
from evensong.settings import Settings
from evensong.types import Frame, Night

#: Items and users first: an event is judged by whether they exist.
TABLES = ("items", "users", "interactions")
SAMPLE_ROWS = 3
#: Beside the verdict of a night that was judged again and has not gone on since.
IN_DOUBT = ".in_doubt.json"
REPEATS = (
    "if these are different events that a coarse clock (days, minutes) cannot tell apart, import them into a new home "
    "with --keep-order, or map an id of the row with --request"
)
GUESTS = (
    "if rows without a user are usual in this source, such as visits of people who did not sign in, import it again "
    "with --guests: they are held back and do not count"
)
RELEASE = (
    "bad rows count until a night goes on, also when their source was corrected since; then "
    "`evensong quarantine release --reason WHY` says that they count no more"
)
#: Fewer days of history than this say nothing about what a usual day is: a week has days of its own.
MIN_TRAILING_DAYS = 7
#: Figures that are wrong where nothing came since the last night.
IN_TIME = ("days_since_newest_event", "last_day_rows")


def run(settings: Settings, night: Night) -> str:
    """Judge the rows known at `as_of` that no night judged yet; returns the URI of the report `validation.json`.

    Raises:
        NothingToLearnError: no event had happened by `as_of`.
        ValidationFailedError: too many rows are bad, the data is stale, or the last day's volume is out of proportion.
        ConfigurationError: the columns file contradicts itself or the settings.
        SourceError: a column or statistic of the columns file reads what no user or item has.
    """
    report_uri = _judge_new(settings, night)
    if settings.features.columns_path is not None:
        check_columns(settings, night.as_of)
    return report_uri


def held_back(settings: Settings, night: Night) -> dict[str, dict[str, int]]:
    """How many rows of each table the night has quarantined, by reason; nothing of a table without any."""
    uri = settings.run_uri(night.run_id, "validation.json")
    tables = storage.read_json(uri)["tables"] if storage.exists(uri) else {}
    return {table: found["reasons"] for table, found in tables.items() if found["quarantined"]}


def check_columns(settings: Settings, as_of: datetime | None = None) -> dict[str, int]:
    """Hold the columns file against users and items; returns how many rows each of them has.

    Args:
        as_of: the clean rows that were known at this moment; none: all that was imported, judged or not.

    Raises:
        ConfigurationError: the file cannot be read, or contradicts itself, the built-in columns or the settings.
        SourceError: a column or a statistic reads what no user or item has, or values of another kind.
    """
    declared_views(settings.features)  # what is wrong with the file itself comes alone
    lake = Lake(settings.lake)
    tables = [f"{RAW}{table}" if as_of is None else table for table in ("users", "items")]
    users, items = (lake.scan(table, as_of).collect() for table in tables)
    problems = []
    for check in (partial(check_event_types, settings), partial(check_sources, settings.features, users, items)):
        try:
            check()
        except (ConfigurationError, SourceError) as error:
            problems.append(error)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise SourceError("\n".join(str(problem) for problem in problems))
    return {"users": len(users), "items": len(items)}


def _judge_new(settings: Settings, night: Night) -> str:
    lake = Lake(settings.lake)
    _refuse_too_early(lake, night)
    report_uri = settings.run_uri(night.run_id, "validation.json")
    verdict_uri = storage.join(settings.lake, "validations", f"{night.run_id}.json")
    verdict: dict[str, Any] = storage.read_json(verdict_uri) if storage.exists(verdict_uri) else {}
    doubt_uri = storage.join(settings.lake, "validations", f"{night.run_id}{IN_DOUBT}")
    held = lake.read(quarantine.TABLE)
    own = held.filter(pl.col("as_of") == night.as_of)
    others = held.filter(pl.col("as_of") != night.as_of)
    others, stopped = gone_on(settings, others)
    rules, versions = _rules(settings), {RAW + table: lake.version(RAW + table) for table in reversed(TABLES)}
    pending = {table: _pending(lake, table, night, others, settings, versions[RAW + table]) for table in TABLES}
    nothing_new = all(_without(table, rows, own).is_empty() for table, rows in pending.items())
    in_doubt = storage.exists(doubt_uri)
    if nothing_new and verdict.get("rules") == rules and not in_doubt:
        return storage.write_json(report_uri, verdict["report"])
    with tempfile.TemporaryDirectory() as folder:
        judge = Judge(Path(folder, docs_pages.DOCS))
        judged = _judge(lake, judge, pending, night, settings)
        if in_doubt or verdict.get("rules") != rules or verdict.get("versions") != versions:
            accepted = _accepted(lake, verdict, own, others, night, settings)
            report = _report(lake, judge, judged, accepted, night, settings)
            docs_pages.publish(judge.build_docs(), report, settings.run_uri(night.run_id, docs_pages.DOCS))
            bad = [quarantine.rows_of(table, judged[table].bad, night.as_of) for table in TABLES]
            left = quarantine.without(stopped, pending)
            if verdict:
                storage.write_json(doubt_uri, "the rows that this night holds are those of a later judgement")
            quarantine.replace(lake, pl.concat([*bad, left]), {night.as_of, *stopped["as_of"]})
            if report["failed"]:
                storage.write_json(report_uri, report)
                raise ValidationFailedError(_failure(report, judged, night, settings, report_uri))
            verdict = {"rules": rules, "versions": versions, "report": report}
            storage.write_json(verdict_uri, verdict)
            storage.remove(doubt_uri)
    for table in TABLES:
        if judged[table].good.height:
            lake.append_new(table, judged[table].good.drop(REPEAT))
    return storage.write_json(report_uri, verdict["report"])


def gone_on(settings: Settings, held: Frame) -> tuple[Frame, Frame]:
    """Of these rows of the quarantine, those of nights that went on after they had judged them, and the others."""
    found = storage.list_files(storage.join(settings.lake, "validations"))
    names = {uri.rpartition("/")[2] for uri in found}
    nights = {as_of: Night(as_of=as_of).run_id for as_of in held["as_of"].unique()}
    went_on = [n for n, name in nights.items() if f"{name}.json" in names and f"{name}{IN_DOUBT}" not in names]
    settled = pl.col("as_of").is_in(went_on)
    return held.filter(settled), held.filter(~settled)


def _refuse_too_early(lake: Lake, night: Night) -> None:
    times = lake.scan(RAW + "interactions").select(pl.col("event_timestamp").min()).collect()
    first = times["event_timestamp"][0]
    if first is None:
        raise NothingToLearnError(
            f"as_of {night.as_of:%Y-%m-%d %H:%M} UTC: expected events, there are none; run `evensong import` or "
            "`evensong simulate` first"
        )
    if first > night.as_of:
        raise NothingToLearnError(
            f"as_of {night.as_of:%Y-%m-%d %H:%M} UTC: expected events at or before it, the first is of "
            f"{first:%Y-%m-%d %H:%M} UTC; choose a later --as-of"
        )


def _rules(settings: Settings) -> dict[str, Any]:
    """The settings that a verdict rests on."""
    return {**settings.validation.model_dump(mode="json"), "positive": list(settings.split.positive_event_types)}


def _accepted(
    lake: Lake, verdict: Mapping[str, Any], own: Frame, others: Frame, night: Night, settings: Settings
) -> dict[str, int]:
    """How many rows of each table this night put into the clean tables when it ran before.

    What an earlier verdict let through and a kill kept from its table is judged again, so it does not count.
    """
    accepted = {}
    for table, found in verdict.get("report", {}).get("tables", {}).items():
        rows = _pending(lake, table, night, others, settings, verdict["versions"][RAW + table])
        accepted[table] = max(found["accepted"] - _without(table, rows, own).height, 0)
    return accepted


def _pending(lake: Lake, table: str, night: Night, others: Frame, settings: Settings, version: int | None) -> Frame:
    """The raw rows of a version that are known at `as_of` and neither clean nor in the quarantine of another night
    that went on, in a fixed order.

    An event dated after `as_of` is looked at only when it is dated after its own arrival too, beyond what clocks may
    differ: then no later night will find it sound.
    """
    created, event = pl.col("created_timestamp"), pl.col("event_timestamp")
    moment = pl.lit(night.as_of)
    happened = event.is_null() | (event <= moment)
    if table == "interactions":
        happened |= event > created + timedelta(seconds=settings.validation.max_clock_skew_seconds)
    raw = lake.scan(RAW + table, version=version)
    rows = raw.filter((created.is_null() | (created <= moment)) & happened).collect()
    keys = list(KEYS[RAW + table])
    clean = lake.scan(table).select(*keys[:-1], pl.lit(0, pl.Int32).alias(REPEAT)).collect()
    rows = rows.join(clean, keys, "anti", nulls_equal=True) if clean.height else rows
    return in_order(RAW + table, _without(table, rows, others))


def _without(table: str, rows: Frame, quarantined: Frame) -> Frame:
    if rows.is_empty() or quarantined.is_empty():
        return rows
    keys = quarantine.keys(table, quarantined)
    return rows.join(keys, keys.columns, "anti", nulls_equal=True, maintain_order="left")


def _judge(
    lake: Lake, judge: Judge, pending: Mapping[str, Frame], night: Night, settings: Settings
) -> dict[str, Judgement]:
    judged: dict[str, Judgement] = {}
    known: dict[str, pl.Series] = {}
    for table in TABLES:
        judged[table] = judge.rows(table, pending[table], known, settings)
        if table != "interactions":
            key = KEYS[table][0]
            clean = lake.scan(table, night.as_of).select(key).unique().collect()
            known[key] = pl.concat([clean[key], judged[table].good[key]]).unique()
    return judged


def _report(
    lake: Lake,
    judge: Judge,
    judged: Mapping[str, Judgement],
    accepted: Mapping[str, int],
    night: Night,
    settings: Settings,
) -> dict[str, Any]:
    """Everything that was found about rows, and about whole tables, which is asked here.

    `accepted` is what this night let through when it ran before, on fewer raw rows.
    """
    guests = any(source.has_guests for source in sources.registered(settings.lake).values())
    volume = _volume(lake, judged["interactions"].good, night, settings.validation.trailing_days)
    tables = {}
    for table in TABLES:
        released = quarantine.released(lake, quarantine.rows_of(table, judged[table].bad, night.as_of))
        tables[table] = _counts(judged[table], accepted.get(table, 0), released, guests)
    figures = {f"quarantined_share_of_{table}": tables[table]["share"] for table in TABLES}
    figures |= {name: value for name, value in volume.items() if isinstance(value, (int, float))}
    counting = {table: found["quarantined"] - found["guests"] - found["released"] for table, found in tables.items()}
    rules = {table: [expectations.share_rule(table, settings.validation, count)] for table, count in counting.items()}
    rules["interactions"] += _rules_in_time(volume, settings)
    of_tables = judge.schemas({RAW + table: lake.scan(RAW + table).collect_schema() for table in TABLES})
    of_tables += judge.whole(figures, rules)
    of_rows = [outcome for table in TABLES for outcome in judged[table].outcomes]
    return {
        "as_of": night.as_of.isoformat(),
        "success": all(outcome.success for outcome in of_tables),
        "failed": [outcome.model_dump() for outcome in of_tables if not outcome.success],
        "tables": tables,
        "volume": volume,
        "expectations": [outcome.model_dump() for outcome in of_tables + of_rows],
        "data_docs": docs_pages.docs_uri(settings, night.run_id),
    }


def _counts(judgement: Judgement, accepted: int, released: pl.Series, guests: bool) -> dict[str, Any]:
    """How many rows were judged and what became of them; bad ones that were released, and those of guests where guests
    are usual, count on neither side."""
    bad = judgement.bad
    reasons = bad.group_by("reason").len().sort("len", "reason", descending=[True, False])
    judged = bad.height + judgement.good.height + accepted
    of_guests = bad["reason"].str.contains(NO_USER, literal=True) & guests
    no_user, free = int(of_guests.sum()), int((released & ~of_guests).sum())
    return {
        "judged": judged,
        "accepted": judged - bad.height,
        "quarantined": bad.height,
        "guests": no_user,
        "released": free,
        "share": (bad.height - no_user - free) / max(1, judged - no_user - free),
        "reasons": dict(reasons.iter_rows()),
    }


def _volume(lake: Lake, good: Frame, night: Night, trailing_days: int) -> dict[str, Any]:
    """How events lie in the 24-hour days before `as_of`: those in the clean table and those that join it now."""
    clean = lake.scan("interactions", night.as_of).select("event_timestamp").collect()
    times = pl.concat([clean, good.filter(pl.col("event_timestamp") <= night.as_of).select("event_timestamp")])
    if times.is_empty():
        return {"days_since_newest_event": None, "last_day_rows": 0, "trailing_days": []}
    age = (pl.lit(night.as_of) - pl.col("event_timestamp")).dt.total_microseconds() / timedelta(days=1).total_seconds()
    days = times.select((age / 1e6).alias("age"))["age"]
    complete = min(trailing_days, int(cast(float, days.max())) - 1)
    counted: dict[int, int] = dict(days.floor().cast(pl.Int64).value_counts().iter_rows())
    return {
        "days_since_newest_event": days.min(),
        "last_day_rows": counted.get(0, 0),
        "trailing_days": [counted.get(day, 0) for day in range(1, complete + 1)],
    }


def _rules_in_time(volume: Mapping[str, Any], settings: Settings) -> list[Rule]:
    """Freshness where there is any event; volume where the history is long enough, and not empty, to know a usual
    day."""
    asked = []
    if volume["days_since_newest_event"] is not None:
        asked.append(expectations.freshness_rule(settings.validation))
    trailing = volume["trailing_days"]
    if len(trailing) >= min(MIN_TRAILING_DAYS, settings.validation.trailing_days) and any(trailing):
        asked.append(expectations.volume_rule(settings.validation, volume["trailing_days"]))
    return asked


def _failure(
    report: Mapping[str, Any], judged: Mapping[str, Judgement], night: Night, settings: Settings, report_uri: str
) -> str:
    """What stopped the night, which expectations name it, and rows to look at."""
    lines = [f"the data as of {night.as_of:%Y-%m-%d %H:%M} UTC is not fit to learn from:"]
    for failed in report["failed"]:
        table, column = failed["table"], failed["column"]
        lines.append(f"{table}: {failed['expectation']}({column}): {failed['message']}")
        if table not in judged:
            continue
        about_rows = column.startswith("quarantined_share")
        found = [o for o in report["expectations"] if about_rows and o["table"] == table and o["unexpected"]]
        for rule in sorted(found, key=lambda o: (-o["unexpected"], o["message"])):
            lines.append(f"  {rule['unexpected']} rows fail {rule['expectation']}({rule['column']}): {rule['message']}")
            if rule["message"] == expectations.DUPLICATE:
                lines.append(f"  {REPEATS}")
            guests_count = table == "interactions" and not report["tables"][table]["guests"]
            if rule["message"] == expectations.NO_USER and guests_count:
                lines.append(f"  {GUESTS}")
        rows = judged[table].bad if about_rows else judged[table].good
        lines += [f"  row {row}" for row in _sample(table, rows, night)]
        if about_rows:
            lines.append(f"  {RELEASE}")
    in_time = any(failed["column"] in IN_TIME for failed in report["failed"])
    if in_time and (advice := simulate.advice(settings, night)):
        lines.append(advice)
    lines.append(f"report: {report_uri}; Data Docs: {report['data_docs']}")
    lines.append(
        "correct the source, choose another --as-of, or change the bound under `validation` in the settings, such as "
        "EVENSONG_VALIDATION__MAX_QUARANTINED_SHARE or EVENSONG_VALIDATION__MAX_STALENESS_DAYS"
    )
    return "\n".join(lines)


def _sample(table: str, rows: Frame, night: Night) -> list[str]:
    """The newest few rows as JSON."""
    shown = rows if "reason" in rows.columns else rows.with_columns(reason=pl.lit(""))
    return quarantine.rows_of(table, shown.tail(SAMPLE_ROWS), night.as_of)["row"].to_list()
