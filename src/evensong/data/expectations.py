"""What good data looks like, as Great Expectations suites; GX judges, and this module only asks and keeps its answers.

Two kinds of expectation: about single rows (their failures name rows, and a reason each), and about a table as a whole
(freshness, volume, the share of bad rows), asked of a frame with one row of figures. Importing this module is cheap:
great_expectations, which takes seconds, is imported by the first `Judge`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from evensong.data.lake import REPEAT, SCHEMAS
from evensong.settings import Settings, ValidationSettings
from evensong.types import Frame, Value

DUPLICATE = "duplicate of an earlier row"
NO_USER = "user_id is missing"
SITE = "evensong"


class Outcome(Value):
    """What GX found about one expectation."""

    table: str
    expectation: str
    """GX's own name of it."""
    column: str
    success: bool
    message: str
    """The reason a row is quarantined with, or what was expected of the table and what came."""
    unexpected: int = 0
    """Rows that failed it."""


@dataclass(frozen=True)
class Rule:
    """One expectation: GX's class name, its arguments, and what to say of what fails it."""

    expectation: str
    column: str
    message: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """The rows of one table, parted."""

    good: Frame
    bad: Frame
    """The bad rows with their `reason`, all reasons joined by `; `."""
    outcomes: list[Outcome]


class Judge:
    """One night's judge; the Data Docs of all it was asked are put together in `folder`."""

    def __init__(self, folder: Path) -> None:
        os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
        import great_expectations as gx
        from great_expectations.data_context.types.base import (
            DataContextConfig,
            InMemoryStoreBackendDefaults,
            ProgressBarsConfig,
        )

        site = {
            "class_name": "SiteBuilder",
            "show_how_to_buttons": False,
            "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder)},
            "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        }
        config = DataContextConfig(
            store_backend_defaults=InMemoryStoreBackendDefaults(),
            data_docs_sites={SITE: site},
            analytics_enabled=False,
            progress_bars=ProgressBarsConfig(globally=False),
        )
        folder.mkdir(parents=True, exist_ok=True)
        self._gx = gx
        self._context = gx.get_context(mode="ephemeral", project_config=config)
        self._pandas = self._context.data_sources.add_pandas("lake")
        self._folder = folder

    def rows(self, table: str, rows: Frame, known: Mapping[str, pl.Series], settings: Settings) -> Judgement:
        """Part the rows of a raw table; `known` holds the ids that exist, by column (`item_id`, `user_id`)."""
        if rows.is_empty():
            return Judgement(rows, rows.with_columns(reason=pl.lit("")), [])
        rules = row_rules(table, settings)
        results = self._ask(table, _subject(table, rows, known), rules)
        outcomes, reasons = [], []
        for rule, result in zip(rules, results, strict=True):
            places = result.result.get("unexpected_index_list") or []
            outcomes.append(_outcome(table, rule, result.success, rule.message, len(places)))
            if places:
                failed = pl.Series([False]).new_from_index(0, rows.height).scatter(places, True)
                reasons.append(pl.when(failed).then(pl.lit(rule.message)))
        said = pl.concat_str(reasons, separator="; ", ignore_nulls=True) if reasons else pl.lit("")
        judged = rows.with_columns(reason=said)
        bad = pl.col("reason") != ""
        return Judgement(judged.filter(~bad).drop("reason"), judged.filter(bad), outcomes)

    def whole(self, figures: Mapping[str, float], rules: Mapping[str, Sequence[Rule]]) -> list[Outcome]:
        """Ask about tables as a whole: `figures` become one row, and each table's rules are about columns of it."""
        asked = [(table, rule) for table, found in rules.items() for rule in found]
        frame = pl.DataFrame({name: [float(value)] for name, value in figures.items()})
        results = self._ask("whole tables", frame, [rule for _, rule in asked])
        return [
            _outcome(table, rule, result.success, f"{rule.message}, found {figures[rule.column]:g}")
            for (table, rule), result in zip(asked, results, strict=True)
        ]

    def schemas(self, tables: Mapping[str, pl.Schema]) -> list[Outcome]:
        """Ask whether tables have the contract's columns and types."""
        declared = [f"{table}.{name}: {dtype}" for table, found in tables.items() for name, dtype in found.items()]
        wanted = [f"{table}.{name}: {dtype}" for table in tables for name, dtype in SCHEMAS[table].items()]
        odd = sorted(set(declared) ^ set(wanted))
        message = f"expected the contract's columns and types{f', differing in {odd}' if odd else ''}"
        rules = [
            Rule("ExpectColumnValuesToBeInSet", "column", message, {"value_set": wanted}),
            Rule("ExpectColumnUniqueValueCountToBeBetween", "column", message, _between(len(wanted), len(wanted))),
        ]
        results = self._ask("schema of the raw tables", pl.DataFrame({"column": declared}), rules)
        return [_outcome("raw", rule, found.success, message) for rule, found in zip(rules, results, strict=True)]

    def build_docs(self) -> Path:
        """Write the Data Docs of everything asked so far; the folder with their pages."""
        self._context.build_data_docs(site_names=[SITE])
        # GX lays 4 MB of fonts and animated pictures beside the pages of every night
        shutil.rmtree(self._folder / "static", ignore_errors=True)
        return self._folder

    def _ask(self, name: str, frame: Frame, rules: Sequence[Rule]) -> list[Any]:
        """GX's results, in the order of the rules."""
        suite = self._context.suites.add(self._gx.ExpectationSuite(name=name))
        for rule in rules:
            make: Callable[..., Any] = getattr(self._gx.expectations, rule.expectation)
            suite.add_expectation(make(column=rule.column, meta={"message": rule.message}, **rule.arguments))
        batch = self._pandas.add_dataframe_asset(name).add_batch_definition_whole_dataframe("night")
        definition = self._gx.ValidationDefinition(name=name, data=batch, suite=suite)
        validation = self._context.validation_definitions.add(definition)
        answer = validation.run(
            batch_parameters={"dataframe": frame.to_pandas()},
            result_format={"result_format": "COMPLETE", "return_unexpected_index_query": False},
        )
        found = {result.expectation_config.id: result for result in answer.results}
        results = [found[expectation.id] for expectation in suite.expectations]
        for result in results:
            if result.exception_info and result.exception_info.get("raised_exception"):
                raise RuntimeError(f"{name}: GX could not judge: {result.exception_info['exception_message']}")
        return results


def row_rules(table: str, settings: Settings) -> list[Rule]:
    """What every row of a table must satisfy, in the order in which reasons are given."""
    limits = settings.validation
    times = [
        Rule("ExpectColumnValuesToNotBeNull", "event_timestamp", "event_timestamp is missing"),
        Rule("ExpectColumnValuesToBeBetween", "event_year", "event_timestamp is before 1971", {"min_value": 1971}),
    ]
    times.append(Rule("ExpectColumnValuesToBeNull", "never_known", "created_timestamp is missing"))
    first = Rule("ExpectColumnValuesToBeInSet", REPEAT, DUPLICATE, {"value_set": [0]})
    if table == "users":
        return [Rule("ExpectColumnValuesToNotBeNull", "user_id", NO_USER), *times, first]
    if table == "items":
        return [
            Rule("ExpectColumnValuesToNotBeNull", "item_id", "item_id is missing"),
            *times,
            Rule("ExpectColumnValuesToNotBeNull", "title", "title is missing"),
            Rule(
                "ExpectColumnValuesToBeBetween",
                "price",
                f"price is not between 0 and {limits.max_price:g}",
                _between(0, limits.max_price),
            ),
            Rule("ExpectColumnValuesToBeNull", "not_a_product", "not a product"),
            first,
        ]
    types = sorted({*limits.event_types, *settings.split.positive_event_types})
    early = f"event_timestamp is more than {limits.max_clock_skew_seconds:g} s after the row became known"
    return [
        Rule("ExpectColumnValuesToNotBeNull", "user_id", NO_USER),
        Rule("ExpectColumnValuesToNotBeNull", "item_id", "item_id is missing"),
        *times,
        Rule(
            "ExpectColumnValuesToBeBetween",
            "seconds_until_known",
            early,
            {"min_value": -limits.max_clock_skew_seconds},
        ),
        Rule("ExpectColumnValuesToNotBeNull", "event_type", "event_type is missing"),
        Rule(
            "ExpectColumnValuesToBeInSet",
            "event_type",
            f"event_type is none of {', '.join(types)} (EVENSONG_VALIDATION__EVENT_TYPES)",
            {"value_set": types},
        ),
        Rule(
            "ExpectColumnValuesToBeBetween",
            "value",
            f"value is not between -{limits.max_value:g} and {limits.max_value:g}",
            _between(-limits.max_value, limits.max_value),
        ),
        Rule("ExpectColumnValuesToBeBetween", "position", "position is negative", {"min_value": 0}),
        Rule(
            "ExpectColumnValuesToBeBetween",
            "propensity",
            "propensity is not above 0 and at most 1",
            {"strict_min": True, **_between(0, 1)},
        ),
        Rule("ExpectColumnValuesToBeNull", "unknown_user", "the user is in no users table"),
        Rule("ExpectColumnValuesToBeNull", "unknown_item", "the item is not in the catalogue"),
        first,
    ]


def share_rule(table: str, limits: ValidationSettings, quarantined: int) -> Rule:
    """At most this share of a night's rows is bad; a handful of `quarantined` ones says nothing about a source."""
    few = quarantined < limits.min_quarantined_rows
    most = 1.0 if few else limits.max_quarantined_share
    message = f"expected a share of at most {most:g} of the rows to be quarantined"
    if few:
        message = (
            f"expected any share of quarantined rows, since they are fewer than {limits.min_quarantined_rows} "
            "(validation.min_quarantined_rows)"
        )
    return Rule("ExpectColumnValuesToBeBetween", f"quarantined_share_of_{table}", message, {"max_value": most})


def freshness_rule(limits: ValidationSettings) -> Rule:
    """The newest event is not too old."""
    most = limits.max_staleness_days
    message = f"expected the newest event at most {most:g} days before as_of"
    return Rule("ExpectColumnValuesToBeBetween", "days_since_newest_event", message, {"max_value": most})


def volume_rule(limits: ValidationSettings, trailing: Sequence[int]) -> Rule:
    """The last day's rows are in proportion to the days before it.

    The bounds follow the smallest and the largest of the trailing days, not their mean: a shop that closes on Saturdays
    has seen a day without rows, so another one is no news, while a steady one has not.
    """
    least = limits.min_volume_ratio * min(trailing)
    most = limits.max_volume_ratio * max(trailing)
    message = (
        f"expected between {least:g} and {most:g} rows in the last day (validation.min_volume_ratio × the smallest and "
        f"max_volume_ratio × the largest of the {len(trailing)} days before)"
    )
    return Rule("ExpectColumnValuesToBeBetween", "last_day_rows", message, _between(least, most))


def _between(low: float, high: float) -> dict[str, float]:
    return {"min_value": low, "max_value": high}


def _outcome(table: str, rule: Rule, success: bool | None, message: str, unexpected: int = 0) -> Outcome:
    words = "".join("_" + letter.lower() if letter.isupper() else letter for letter in rule.expectation)
    return Outcome(
        table=table,
        expectation=words.removeprefix("_"),
        column=rule.column,
        success=bool(success),
        message=message,
        unexpected=unexpected,
    )


def _subject(table: str, rows: Frame, known: Mapping[str, pl.Series]) -> Frame:
    """The columns that the rules are about; a row's place in it is its place in `rows`."""
    happened = pl.col("event_timestamp").is_not_null()
    never = pl.when(happened & pl.col("created_timestamp").is_null()).then("event_timestamp").alias("never_known")
    year = pl.col("event_timestamp").dt.year().alias("event_year")
    if table == "users":
        return rows.select("user_id", "event_timestamp", year, never, REPEAT)
    if table == "items":
        other = pl.col("attributes").str.contains(r'"product":\s*false')
        return rows.select(
            "item_id",
            "title",
            "price",
            "event_timestamp",
            year,
            never,
            REPEAT,
            not_a_product=pl.when(other).then("item_id"),
        )
    until = (pl.col("created_timestamp") - pl.col("event_timestamp")).dt.total_microseconds() / 1e6
    unknown = {
        f"unknown_{name}": pl.when(~pl.col(f"{name}_id").is_in(known[f"{name}_id"].implode())).then(f"{name}_id")
        for name in ("user", "item")
    }
    return rows.select(
        "user_id",
        "item_id",
        "event_timestamp",
        year,
        never,
        "event_type",
        "value",
        "position",
        "propensity",
        REPEAT,
        seconds_until_known=until,
        **unknown,
    )
