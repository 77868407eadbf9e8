"""The command line: one command a step, each with `--json` for one JSON document on stdout; logs go to stderr.

Exit codes: 0 done, 1 refused by a rule (validation, a promotion that it forbids), 2 wrong use or something that
this needs is not there, 70 a defect of ours, 130 stopped by Ctrl-C. A night whose gate keeps the champion is done.
"""

from __future__ import annotations

import errno
import inspect
import json
import logging
import select
import sys
import traceback
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, get_origin

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evensong.errors import ConfigurationError, EvensongError
from evensong.settings import Settings, describe, load_settings, without_password
from evensong.types import Night

app = typer.Typer(
    name="evensong",
    help="Retrains a recommender every night and promotes it only when the evidence says that it is better.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
importing = typer.Typer(
    help="Bring data in; a second import of a grown source adds just what is new.", no_args_is_help=True
)
quarantine = typer.Typer(help="Bad rows that hold nights back, and what a person says of them.", no_args_is_help=True)
registry = typer.Typer(help="Versions, the champion, and the ledger of its moves.", no_args_is_help=True)
app.add_typer(importing, name="import")
app.add_typer(quarantine, name="quarantine")
app.add_typer(registry, name="registry")
features = typer.Typer(help="Every feature: what it means, where it comes from, its version.", no_args_is_help=True)
app.add_typer(features, name="features")

log = logging.getLogger(__name__)
screen = Console()
#: Characters on a line from which tables show more.
_WIDE = 130
notes = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]


DEFECT, STOPPED, NOBODY_READS = 70, 130, 141
_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
#: What drivers call the error of a server that is away, refuses or is too slow; each has a class of its own.
_AWAY = ("Connect", "Timeout", "OperationalError")


def main() -> NoReturn:
    """Run the command line; an expected error becomes one line and its exit code, a defect keeps its traceback."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        # a command's Exit, and Ctrl-C as one of 130, come back as a number
        code = app(standalone_mode=False) or 0
    except EvensongError as error:
        _fail(str(error), error.exit_code)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}, got {e['input']!r}"
            for e in error.errors()
        )
        _fail("; ".join(problems), 2)
    except typer.Abort:
        _fail("stopped", STOPPED)
    except typer.TyperException as error:
        # wrong use, which knows how to show itself
        show = getattr(error, "show", None)
        if show:
            show()
        _fail(error.format_message(), 2, shown=show is not None)
    except SystemExit as stop:
        # typer takes every broken pipe for that of our output
        broken = stop.__context__
        if not isinstance(broken, OSError):
            raise
        if _nobody_reads():
            sys.exit(NOBODY_READS)
        _defect(broken)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _DISK_FULL:
            _fail(f"{error}; make room, then run this again: what was done stays done", 2)
        if any(word in kind.__name__ for kind in type(error).__mro__ for word in _AWAY):
            log.warning("where it happened", exc_info=error)
            _fail(f"{_said(error)}; something that this needs does not answer: `evensong doctor` says what", 2)
        _defect(error)
    if code == STOPPED:
        _fail("stopped", STOPPED)
    sys.exit(code)


def _fail(message: str, code: int, *, shown: bool = False) -> NoReturn:
    if "--json" in sys.argv:
        print(json.dumps({"error": message, "exit_code": code}))
    if not shown:
        notes.print({1: "[red]refused[/red] ", STOPPED: ""}.get(code, "[red]error[/red] "), end="")
        notes.print(message, markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)


def _defect(error: BaseException) -> NoReturn:
    traceback.print_exception(error)
    _fail(f"a defect of Evensong, please report it with the lines above: {_said(error)}", DEFECT)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {without_password(str(error))}".strip()


def _nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))


def _answer(value: Any, as_json: bool, show: Callable[[Any], None] | None = None) -> None:
    """Print a command's result: JSON when asked for, a picture for people otherwise."""
    if as_json:
        _print_json(value)
    elif show:
        show(value)
    else:
        for name, content in value.items():
            screen.print(f"{name}: {content}", markup=False)


def _print_json(value: Any) -> None:
    print(json.dumps(value, default=str), flush=True)


def _rows(title: str, rows: list[dict[str, Any]], columns: list[str]) -> None:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column.replace("_", " "), overflow="fold", no_wrap=number == 0)
    for row in rows:
        # as text: a title with square brackets is no markup
        table.add_row(*[Text(_cell(row.get(column))) for column in columns])
    screen.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    return str(value)


# ---------------------------------------------------------------- data


SourceName = Annotated[str | None, typer.Option("--name", help="The source's name; else it is taken from what it is.")]


@importing.command("movielens")
def import_movielens(
    path: Annotated[str, typer.Argument(help="A folder of MovieLens 100K or 1M, as published.")],
    name: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """MovieLens ratings, movies and users."""
    from evensong.pipelines import imports

    _bring("movielens", lambda settings: imports.movielens(settings, path, name), as_json)


@importing.command("online-retail")
def import_online_retail(
    path: Annotated[str, typer.Argument(help="Online Retail (UCI) as Parquet or CSV.")],
    name: SourceName = None,
    as_json: AsJson = False,
) -> None:
    """A year of a UK web shop: sales, returns, and all its dirt."""
    from evensong.pipelines import imports

    _bring("online-retail", lambda settings: imports.online_retail(settings, path, name), as_json)


@importing.command("list")
def import_list(as_json: AsJson = False) -> None:
    """Every registered source, which each night reads: its kind, its place, its mapping."""
    from evensong.pipelines import imports

    def show(rows: list[dict[str, Any]]) -> None:
        told = [row | {"mapping": ", ".join(f"{key}={value}" for key, value in row["mapping"].items())} for row in rows]
        _rows("sources", told, ["name", "kind", "location", "mapping"])

    _answer(imports.listed(load_settings()), as_json, show)


@importing.command("remove")
def import_remove(
    name: Annotated[str, typer.Argument(help="The source's name, as `import list` shows it.")], as_json: AsJson = False
) -> None:
    """Let no night read this source any more; the rows that it brought stay."""
    from evensong.pipelines import imports

    _answer(imports.remove(load_settings(), name), as_json)


def _bring(kind: Any, bring: Callable[[Settings], dict[str, int]], as_json: bool) -> None:
    """Import, and say on stderr what a person should know before a night runs."""
    from evensong.pipelines import imports

    settings = load_settings()
    _caution(imports.strangers(settings, kind))
    added = bring(settings)
    for warning in imports.warnings(settings):
        _caution(warning)
    _answer(added, as_json)


def _caution(text: str | None) -> None:
    if text:
        notes.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _import_events(location: str, name: str | None, as_json: bool, **columns: Any) -> None:
    """Any CSV or Parquet file or folder, local or on S3, or any SQL table, by a mapping of its columns.

    LOCATION is a path, s3://bucket/prefix, an SQLAlchemy URL, or env:NAME for a URL that the variable NAME holds.
    """
    from evensong.data.mapping import read_mapping
    from evensong.pipelines import imports

    mapping = read_mapping(**columns)
    _bring("events", lambda settings: imports.events(settings, location, mapping, name), as_json)


def _with_mapping_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command one option a field of `EventMapping`, so that neither can grow without the other."""
    from evensong.data.mapping import EventMapping

    kinds: dict[str, Any] = {
        "location": Annotated[str, typer.Argument(help="A path, s3://bucket/prefix, SQLAlchemy URL, or env:NAME.")],
        "name": Annotated[str | None, typer.Option(help="The source's name; else it is taken from the location.")],
        "as_json": AsJson,
    }
    defaults: dict[str, Any] = {"location": inspect.Parameter.empty, "name": None, "as_json": False}
    for field_name, field in EventMapping.model_fields.items():
        option = "--" + field_name.replace("_", "-")
        kind: Any = str | None
        if field.annotation is bool:
            kind, option = bool, f"{option}/--no-{field_name.replace('_', '-')}"
        elif get_origin(field.annotation) is tuple:
            kind = list[str]
        kinds[field_name] = Annotated[kind, typer.Option(option, help=field.description)]
        defaults[field_name] = [] if kind == list[str] else field.get_default() if not field.is_required() else None
        if field.is_required():
            kinds[field_name] = Annotated[str, typer.Option(option, help=field.description)]
            defaults[field_name] = inspect.Parameter.empty
    keyword = inspect.Parameter.KEYWORD_ONLY
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(key, keyword, annotation=kinds[key], default=defaults[key]) for key in kinds]
    )
    command.__annotations__ = dict(kinds)
    return command


importing.command("events")(_with_mapping_options(_import_events))


@quarantine.command("list")
def quarantine_list(as_json: AsJson = False) -> None:
    """The bad rows of nights that stopped, which count until a night goes on; and what was released."""
    from evensong.pipelines import quarantine as held_back

    _answer(held_back.listed(load_settings()), as_json, _show_quarantine)


def _show_quarantine(answer: dict[str, list[dict[str, Any]]]) -> None:
    counting, released = answer["counting"], answer["released"]
    if counting:
        rows = [row | {"night": _night_of(row["as_of"])} for row in counting]
        _rows("rows that count in the next night", rows, ["night", "table", "rows", "reason"])
    else:
        screen.print("no bad row counts in the next night")
    if released:
        rows = [row | {"at": _moment(row["at"])} for row in released]
        _rows("released", rows, ["at", "by", "rows", "reason"])


@quarantine.command("release")
def quarantine_release(
    reason: Annotated[str, typer.Option(help="Why they count no more, for the record.")], as_json: AsJson = False
) -> None:
    """Say that the bad rows that count now stop no night any more; bad as they are, they stay in the quarantine."""
    from evensong.pipelines import quarantine as held_back

    def show(answer: dict[str, Any]) -> None:
        counts = ", ".join(f"{count} of {table}" for table, count in answer["rows"].items())
        screen.print(f"released by {answer['by']}: {counts}", markup=False, highlight=False)

    _answer(held_back.release(load_settings(), reason), as_json, show)


# ---------------------------------------------------------------- nights


@app.command()
def nightly(
    as_of: Annotated[str, typer.Option(help="The cutoff, such as 2026-01-15 or 2026-01-15T02:00:00Z.")],
    source: Annotated[str, typer.Option(help="Which registered source to ingest from.")] = "all",
    train_from: Annotated[
        Literal["scratch", "champion"], typer.Option(help="Random weights, or the champion's.")
    ] = "scratch",
    refit: Annotated[bool, typer.Option(help="Train on everything up to as_of after the evaluation.")] = True,
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 7,
    as_json: AsJson = False,
) -> None:
    """Run one night in this process: the steps of the DAG `nightly_retraining`."""
    from evensong.pipelines.night import run_night
    from evensong.pipelines.validate import held_back

    night = Night.model_validate(
        {"as_of": as_of, "source": source, "train_from": train_from, "refit": refit, "seed": seed}
    )
    with notes.status("starting") as status:

        def tell(name: str, seconds: float | None) -> None:
            status.update(f"{name} …")
            if seconds is not None:
                notes.print(f"{name:<16} {seconds:8.1f} s")
            elif not notes.is_terminal:
                notes.print(f"begin {name}", highlight=False)

        settings = load_settings()
        result = run_night(settings, night, tell)
    quarantined = held_back(settings, night)
    for table, reasons in quarantined.items():
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        _caution(f"{sum(reasons.values())} rows of {table} are quarantined, and nothing is learnt from them: {why}")
    # a champion that stays is the gate's ordinary answer, not a failed command (docs/decisions/0020-exit-codes.md)
    _answer(result.model_dump(mode="json") | {"quarantined": quarantined}, as_json, _show_night)


def _show_night(result: dict[str, Any]) -> None:
    decision = result["decision"]
    champion = result["champion"]
    word = "[green]promoted[/green]" if decision["promote"] else "[yellow]not promoted[/yellow]"
    stands = f"champion is version {champion}" if champion else "there is no champion yet"
    screen.print(f"{result['as_of'][:10]}  version {result['version']}: {word}; {stands}")
    for reason in decision["reasons"]:
        screen.print(f"  - {reason}", markup=False)
    if champion is None:
        screen.print(
            "nothing is served until a version is champion: bring more data and run a later night, or make this one "
            f'champion by your word: evensong registry promote {result["version"]} --reason "…"',
            markup=False,
        )
    _figures("held-out days", result["metrics"])


def _figures(title: str, metrics: dict[str, dict[str, float]]) -> None:
    """One line a metric, one column a model: there are few models, and a screen is narrow."""
    names = sorted({name for of_model in metrics.values() for name in of_model})
    rows = [{"metric": name} | {model: of_model.get(name) for model, of_model in metrics.items()} for name in names]
    _rows(title, rows, ["metric", *metrics])


@app.command()
def simulate(
    days: Annotated[int, typer.Option(min=0, help="How many days to simulate.")] = 1,
    start: Annotated[str | None, typer.Option(help="The first day; without it, the day after the last one.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The shop's seed; one folder holds one shop.")] = None,
    policy: Annotated[
        Literal["warmup", "popularity", "champion"],
        typer.Option(help="Who fills the slates: warmup, popularity or champion."),
    ] = "champion",
    lives_on: Annotated[
        bool | None,
        typer.Option(
            "--lives-on/--stands-still", help="Whether each later night lives the days up to its as_of by itself."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Simulate days of a shop whose truth is known."""
    from evensong.pipelines import imports
    from evensong.pipelines import simulate as simulation

    found = load_settings()
    _caution(imports.strangers(found, "contract"))
    lived = simulation.run(found, days=days, start=_day(start), seed=seed, policy=policy, lives_on=lives_on)
    _answer(lived, as_json)


def _day(text: str | None) -> date | None:
    try:
        return date.fromisoformat(text) if text else None
    except ValueError:
        raise ConfigurationError(f"start: expected a day such as 2026-01-15, got {text!r}") from None


# ---------------------------------------------------------------- registry

Version = Annotated[str, typer.Argument(help="A version's number, or `champion`.")]
Reason = Annotated[str, typer.Option(help="Why, for the ledger.")]


@registry.command("list")
def registry_list(as_json: AsJson = False) -> None:
    """Every version, newest first: its cutoff, what the gate said, which one is the champion."""
    from evensong.registry import commands

    _answer(commands.list_versions(load_settings()), as_json, _show_versions)


def _show_versions(versions: list[dict[str, Any]]) -> None:
    if not versions:
        screen.print("no version yet; `evensong nightly --as-of DATE` registers one", markup=False)
        return
    columns = ["version", "night", "champion", "gate", "review", "blocked", "digest"]
    rows = [
        {
            **one,
            "night": _night_of(one["as_of"]),
            "champion": "champion" if one["champion"] else None,
            "digest": one["digest"][:8],
        }
        for one in versions
    ]
    _rows("versions", rows, columns)


def _night_of(as_of: str) -> str:
    """A cutoff for people: the day, and the time of day unless it is midnight."""
    return as_of[:10] if as_of[11:16] == "00:00" else as_of[:16].replace("T", " ")


@registry.command("show")
def registry_show(version: Version, as_json: AsJson = False) -> None:
    """Everything about one version: metrics, lineage, decision, moves."""
    from evensong.registry import commands

    found = load_settings()
    _answer(commands.show(found, version), as_json, lambda answer: _show_version(found, answer))


#: Tags of a version that its lineage shows.
LINEAGE = (
    "train_cutoff", "lake_versions", "feature_service", "code_commit", "seed", "train_from", "trained_from", "refit",
    "airflow_run",
)  # fmt: skip
MODELS = ("challenger", "champion", "item_knn", "popularity")


def _show_version(found: Settings, answer: dict[str, Any]) -> None:
    from evensong.pipelines.review import version_page
    from evensong.registry import commands, tracking

    tags = answer["tags"]
    words = [f"alias {', '.join(answer['aliases'])}" if answer["aliases"] else ""]
    words += [f"{name}: {tags[name]}" for name in ("review", "blocked", "collected", "foreign") if name in tags]
    screen.print(f"[bold]version {answer['version']}[/bold], night of {_night_of(answer['as_of'])}", highlight=False)
    _lines({"state": "; ".join(filter(None, words)) or "neither champion nor waiting", "bundle": answer["digest"]})
    _show_decision(commands.decision_of(found, answer["version"]), tags.get("gate_reasons", ""))
    figures = {name: value for name, value in answer["metrics"].items() if not name.startswith("seconds.")}
    models = [model for model in MODELS if any(name.startswith(f"{model}.") for name in figures)]
    metrics = sorted({name.split(".", 1)[1] for name in figures if name.split(".", 1)[0] in models})
    rows = [{"metric": metric} | {model: figures.get(f"{model}.{metric}") for model in models} for metric in metrics]
    _rows("figures", rows, ["metric", *models])
    others = {name: value for name, value in figures.items() if name.split(".", 1)[0] not in models}
    _lines({name: f"{value:g}" for name, value in others.items()})
    screen.print("\nlineage", style="italic")
    _lines({name.replace("_", " "): tags[name] for name in LINEAGE if name in tags})
    screen.print("\nmoves", style="italic")
    if answer["moves"]:
        _show_ledger(answer["moves"])
    else:
        screen.print("never the champion")
    screen.print("\nlinks", style="italic")
    links = {"MLflow": version_page(found, answer["version"])}
    if "dossier_hash" in tags and answer["model_id"]:
        links["dossier"] = f"{tracking.artifacts_page(found, answer['model_id'])} (dossier.html)"
    _lines(links)


def _show_decision(decision: dict[str, Any] | None, reasons: str) -> None:
    if decision is None:
        screen.print("decision        none: the gate has not judged it, or its decision cannot be read")
        return
    verdict = "promote" if decision["promote"] else "keep the champion"
    verdict = "a person must agree" if decision["needs_review"] else verdict
    failed = [check for check in decision["checks"] if not check["passed"]]
    doubtful = [check for check in decision["checks"] if check["passed"] and check.get("doubtful")]
    passed = len(decision["checks"]) - len(failed)
    _lines({"decision": f"{verdict}; {passed} of {len(decision['checks'])} checks passed"})
    for word, checks in (("failed", failed), ("in doubt", doubtful)):
        for check in checks:
            _lines({word: f"{check['name']}: {check['message']}"})
    if reasons and not failed:
        _lines({"because": _decisive(reasons.split("\n"))})


def _decisive(reasons: list[str]) -> str:
    """What was said of the champion, if anything: it is what a night is about."""
    return next((reason for reason in reasons if " champion v" in reason), reasons[0])


def _lines(values: dict[str, str]) -> None:
    for name, text in values.items():
        # whole, so that an address stays one
        screen.print(f"{name:<15} {text}", markup=False, highlight=False, soft_wrap=True)


@registry.command("promote")
def registry_promote(version: Version, reason: Reason, as_json: AsJson = False) -> None:
    """Make the version champion by your word, whatever the gate said."""
    from evensong.registry import commands

    found = load_settings()
    answer = commands.promote(found, version, reason=reason)
    _answer(answer, as_json, _show_move)
    decision = commands.decision_of(found, version) if answer["moved"] and not as_json else None
    if decision and not decision["promote"] and not decision["needs_review"]:
        screen.print(f"the gate would have kept the champion: {_decisive(decision['reasons'])}", markup=False)


@registry.command("reject")
def registry_reject(version: Version, reason: Reason, as_json: AsJson = False) -> None:
    """Keep the version from being promoted by any rule."""
    from evensong.registry import commands

    answer = commands.reject(load_settings(), version, reason=reason)
    _answer(
        answer,
        as_json,
        lambda one: screen.print(f"version {one['version']} is rejected: {one['reason']}", markup=False),
    )


@registry.command("rollback")
def registry_rollback(
    reason: Reason,
    to: Annotated[str | None, typer.Option(help="The earlier champion to return to; else the one before.")] = None,
    expected: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="The champion to leave: refused if it is another one by now, and repeated, done once.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Return to the previous champion; the version left behind waits for a person's word."""
    from evensong.registry import commands

    _answer(commands.rollback(load_settings(), reason=reason, to=to, expected=expected), as_json, _show_move)


@registry.command("ledger")
def registry_ledger(
    verify: Annotated[bool, typer.Option("--verify", help="Find edits, and moves by another hand.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every move of the champion: who, when, from, to, why."""
    from evensong.registry import commands

    if verify:
        state = commands.verify(load_settings())
        _answer(state, as_json, _show_state)
        if not state["sound"]:
            raise typer.Exit(1)
        return
    _answer(commands.read_ledger(load_settings()), as_json, _show_ledger)


@registry.command("adopt")
def registry_adopt(reason: Reason, as_json: AsJson = False) -> None:
    """Acknowledge what `ledger --verify` finds: nothing moves, and what is found from now on is new."""
    from evensong.registry import commands

    _answer(commands.adopt(load_settings(), reason=reason), as_json, _show_adoption)


def _show_adoption(answer: dict[str, Any]) -> None:
    if not answer["adopted"]:
        screen.print("the ledger is sound, and the alias is where it left it: there is nothing to acknowledge")
        return
    screen.print(f"line {answer['line']['number']} acknowledges:", markup=False)
    for problem in answer["line"]["acknowledged"] or ["the ledger's end, which MLflow remembered otherwise"]:
        screen.print(f"  - {problem}", markup=False)


@registry.command("diff")
def registry_diff(first: Version, second: Version, as_json: AsJson = False) -> None:
    """Two versions: data, features, configuration, metrics, sample recommendations."""
    from evensong.pipelines import diff

    _answer(diff.run(load_settings(), first, second), as_json, _show_diff)


@registry.command("reviews")
def registry_reviews(as_json: AsJson = False) -> None:
    """What waits for a person's word; `registry promote` and `reject` answer."""
    from evensong.registry import commands

    _answer(commands.reviews(load_settings()), as_json, _show_reviews)


def _show_reviews(waiting: list[dict[str, Any]]) -> None:
    for one in waiting:
        comes_to = "it is promoted" if one["default"] == "promote" else "the champion stays"
        screen.print(f"[bold]version {one['version']}[/bold], night of {_night_of(one['as_of'])}", highlight=False)
        _lines({"asked": _moment(one["asked_at"]), "deadline": f"{_moment(one['deadline'])}, then {comes_to}"})
        if one["reasons"]:
            _lines({"because": _decisive(one["reasons"])})
        if one["note"]:
            _lines({"tag": one["note"]})
    if not waiting:
        screen.print("nothing waits for a person")
    else:
        screen.print("answer with `evensong registry promote VERSION --reason WHY`, or `reject`", highlight=False)


def _moment(text: str) -> str:
    return f"{text[:16].replace('T', ' ')} UTC"


@registry.command("collect")
def registry_collect(
    remove: Annotated[bool, typer.Option("--remove", help="Remove what the rule lets go; else only show it.")] = False,
    as_json: AsJson = False,
) -> None:
    """What the retention rule keeps and lets go; never a recent champion."""
    from evensong.pipelines import retention

    rows = retention.run(load_settings(), remove=remove)
    _answer(rows, as_json, lambda found: _rows("bundles", found, ["version", "as_of", "action", "why"]))


@registry.command("origin")
def registry_origin(version: Version, as_json: AsJson = False) -> None:
    """Where a version's answers come from: files, features, lake versions, code, runs, moves."""
    from evensong.registry import commands

    _answer(commands.origin(load_settings(), version), as_json, _show_origin)


def _show_origin(answer: dict[str, Any]) -> None:
    screen.print(f"[bold]version {answer['version']}[/bold], night of {_night_of(answer['as_of'])}", highlight=False)
    known = answer["features"] or {}
    lines = {
        "bundle": answer["bundle_digest"],
        "features": f"{answer['feature_service'] or 'unknown'}, "
        f"dictionary {known.get('dictionary_version', 'collected')}",
        "lake": ", ".join(f"{table} {version}" for table, version in sorted(answer["lake_versions"].items())),
        "code": answer["code_commit"],
        "seed": answer["seed"],
        "MLflow run": answer["mlflow_run"],
        "Airflow run": answer["airflow_run"] or "none: run by `evensong nightly`",
        "decision": answer["decision_hash"] or "none",
        "dossier": answer["dossier_hash"] or "none",
    }
    _lines({name: str(text) for name, text in lines.items()})
    if answer["files"]:
        files = [{"file": name, "sha256": f"{digest[:12]}…"} for name, digest in answer["files"].items()]
        _rows("files (`--json` has the digests whole)", files, ["file", "sha256"])
    else:
        screen.print("its bundle is collected: the files are gone")
    screen.print("\nmoves", style="italic")
    if answer["moves"]:
        _show_ledger(answer["moves"])
    else:
        screen.print("never the champion")


@app.command()
def reproduce(version: Version, as_json: AsJson = False) -> None:
    """Train a version anew from the lake, recipe and seeds of then, and compare metrics and weights."""
    from evensong.pipelines import reproduce as reproducing

    answer = reproducing.run(load_settings(), version, lambda step: notes.print(step, markup=False))
    _answer(answer, as_json, _show_reproduction)
    if not answer["same"]:
        raise typer.Exit(1)


def _show_reproduction(answer: dict[str, Any]) -> None:
    differing = [{"metric": name, **row} for name, row in answer["metrics"].items() if row["then"] != row["now"]]
    others = [name for name, same in answer["weights"].items() if not same]
    screen.print(f"version {answer['version']}, night of {_night_of(answer['as_of'])}", highlight=False)
    _lines(
        {
            "metrics": "all equal"
            if answer["same_metrics"]
            else f"{len(differing)} of {len(answer['metrics'])} differ",
            "weights": "all equal" if not others else f"other: {', '.join(others)}",
            "bundle": answer["bundle"],
        }
        | ({} if answer["weights"] else {"weights": "cannot be compared"})
    )
    if differing:
        _rows("metrics that differ", differing, ["metric", "then", "now"])
    for note in answer["notes"]:
        screen.print(f"  - {note}", markup=False)


@app.command()
def explain(
    request_id: Annotated[str, typer.Argument(help="An answer's `request_id`.")], as_json: AsJson = False
) -> None:
    """Where a served recommendation comes from: version, index, features, lake versions, Airflow run."""
    from evensong.pipelines import explain as explaining

    _answer(explaining.run(load_settings(), request_id), as_json, _show_explanation)


#: Items whose features stand on the screen, and elements of a list; the JSON holds all.
_ITEMS_SHOWN, _ELEMENTS_SHOWN = 3, 5


def _show_explanation(answer: dict[str, Any]) -> None:
    request, model, variant, index = (answer[name] for name in ("request", "model", "variant", "index"))
    known = answer["features"]
    since = variant["since"]
    lines = {
        "request": f"{request['request_id']} of {request['user_id']} at {request['at']}",
        "answered by": f"{answer['source']}: {answer['reason']}" if answer["reason"] else answer["source"],
        "variant": f"{variant['name']}, by {since['actor']}: {since['reason']}" if since else variant["name"],
        "model": f"{model['name']} version {model['version']}, as of {model['as_of']}, bundle {model['bundle_digest']}",
        "index": f"{index['kind']}, recall {index['index_recall']:g}" if "kind" in index else "collected",
        "features": f"{known['service']}, dictionary {known['dictionary_version'] or 'collected'}, as of "
        f"{known['as_of'] or 'none: the online store was away'}",
        "feature tables": ", ".join(f"{view} {version}" for view, version in sorted(known["table_versions"].items())),
        "lake": ", ".join(f"{table} {version}" for table, version in sorted(answer["lake_versions"].items())),
        "code": model["code_commit"],
        "Airflow run": answer["airflow_run"] or "none: run by `evensong nightly`",
    }
    table = Table.grid(padding=(0, 2))
    for name, text in lines.items():
        table.add_row(name, Text(text or ""))
    screen.print(table, highlight=False)
    _rows("recommendations", answer["recommendations"], ["rank", "item_id", "title", "score", "source"])
    _rows("features of the user", [_shortened(one) for one in known["user"]], ["name", "value", "version"])
    for item_id, values in list(known["items"].items())[:_ITEMS_SHOWN]:
        _rows(f"features of {item_id}", [_shortened(one) for one in values], ["name", "value", "version"])
    if (more := len(known["items"]) - _ITEMS_SHOWN) > 0:
        screen.print(f"and of {more} items more: `evensong explain {request['request_id']} --json`", markup=False)


def _shortened(feature: dict[str, Any]) -> dict[str, Any]:
    value = feature["value"]
    if not isinstance(value, list) or len(value) <= _ELEMENTS_SHOWN:
        return feature
    return feature | {"value": f"{_cell(value[:_ELEMENTS_SHOWN])}, … ({len(value)})"}


def _show_diff(answer: dict[str, Any]) -> None:
    columns = ["name", "first", "second"]
    code = {"name": "code_commit", **answer["code_commit"]}
    parts = {part: answer[part] for part in ("data", "features", "configuration")}
    parts["code"] = [code] if code["first"] != code["second"] else []
    for part, rows in parts.items():
        if rows:
            _rows(part, rows, columns)
        else:
            screen.print(f"{part}: the same", markup=False)
    _rows("metrics", [{"name": name, **row} for name, row in answer["metrics"].items()], columns)
    if answer["missing"]:
        screen.print(f"missing: {answer['missing']}", markup=False, soft_wrap=True)
    else:
        _rows("recommendations", answer["recommendations"], ["user_id", "first", "second"])


def _show_state(state: dict[str, Any]) -> None:
    champion = f"version {state['champion']}" if state["champion"] else "none"
    word = "is sound" if state["sound"] else "is not sound"
    screen.print(f"the ledger of {state['lines']} lines {word}; champion: {champion}", highlight=False)
    for problem in state["problems"]:
        screen.print(f"  - {problem}", markup=False)
    if state["problems"]:
        screen.print("when you know the cause: `evensong registry adopt --reason WHY` acknowledges it", highlight=False)


def _show_ledger(lines: list[dict[str, Any]]) -> None:
    for line in lines:
        move = f"version {line['from_version'] or 'none'} to {line['to_version']}"
        screen.print(f"{line['number']}  {line['at'][:19]}  {line['kind']}: {move}, by {line['actor']}", markup=False)
        screen.print(f"   {line['reason']}", markup=False)
    if not lines:
        screen.print("no champion was ever chosen here; a night's gate chooses one, or `evensong registry promote`")


def _show_move(answer: dict[str, Any]) -> None:
    word = "is now" if answer["moved"] else "was already"
    screen.print(f"version {answer['champion']} {word} the champion ({answer['registry']})", markup=False)


# ---------------------------------------------------------------- features


@features.command("list")
def features_list(as_json: AsJson = False) -> None:
    """Every feature with type and window, on a wide screen also source and version; the JSON is what `diff` takes."""
    from evensong.features.dictionary import build_dictionary

    dictionary = build_dictionary(load_settings())
    answer = dictionary.model_dump(mode="json") | {"version": dictionary.version}
    columns = ["name", "type", "window", *(["entity", "source", "version"] if screen.width >= _WIDE else [])]
    title = f"dictionary {dictionary.version}; all of one feature: `evensong features show NAME`"
    _answer(answer, as_json, lambda found: _rows(title, found["features"], columns))


@features.command("show")
def features_show(name: Annotated[str, typer.Argument(help="view.feature")], as_json: AsJson = False) -> None:
    """One feature, in full."""
    from evensong.features.dictionary import show

    _answer(show(load_settings(), name).model_dump(mode="json"), as_json)


@features.command("check")
def features_check(
    path: Annotated[Path | None, typer.Argument(help="Your columns file; without it features.columns_path.")] = None,
    as_json: AsJson = False,
) -> None:
    """Hold your columns file against what was imported, in seconds; the validation of a night does the same."""
    from evensong.errors import ConfigurationError
    from evensong.features.columns import load_columns
    from evensong.pipelines.validate import check_columns

    settings = load_settings(**({"features": {"columns_path": path}} if path else {}))
    file = settings.features.columns_path
    if file is None:
        raise ConfigurationError(
            "expected a columns file, found none; name it here or in EVENSONG_FEATURES__COLUMNS_PATH, "
            "see docs/guides/columns.md"
        )
    rows, found = check_columns(settings), load_columns(file)
    declared = {
        "columns of users": len(found.users.root),
        "columns of items": len(found.items.root),
        "crosses": len(found.crosses),
        "statistics": len(found.statistics),
    }
    _answer({"file": str(file), "declared": declared, "rows": rows}, as_json, _show_check)


def _show_check(answer: dict[str, Any]) -> None:
    declared = ", ".join(f"{what}: {number}" for what, number in answer["declared"].items())
    users, items = answer["rows"]["users"], answer["rows"]["items"]
    read = f"all can be read from the {users:,} rows of users and {items:,} of items"
    if not users + items:
        read = "nothing is imported yet to read them from: `evensong import`, then check again"
    screen.print(f"{answer['file']} is sound ({declared}); {read}", markup=False, soft_wrap=True)


@features.command("diff")
def features_diff(
    before: Annotated[Path, typer.Argument(help="A file that `evensong features list --json` wrote.")],
    after: Annotated[Path | None, typer.Argument(help="Another one; without it, the dictionary as it is now.")] = None,
    as_json: AsJson = False,
) -> None:
    """What came, went and changed from one dictionary to another."""
    from evensong.features.dictionary import build_dictionary, diff

    now = _read_dictionary(after) if after else build_dictionary(load_settings())
    _answer(diff(_read_dictionary(before), now).model_dump(mode="json"), as_json)


@features.command("report")
def features_report(
    as_of: Annotated[str | None, typer.Option(help="The night's cutoff; without it, the newest night's.")] = None,
    as_json: AsJson = False,
) -> None:
    """Missing values, spread, drift, redundant groups, and what the champion needs; also logged to MLflow."""
    from evensong.data import storage
    from evensong.errors import StorageError
    from evensong.pipelines import feature_report
    from evensong.pipelines.features import materialized_at

    found = load_settings()
    moment = as_of or materialized_at(found)
    if moment is None:
        raise StorageError("expected a night to report on, found none; run `evensong nightly --as-of DATE`")
    uri = feature_report.run(found, Night.model_validate({"as_of": moment}))
    report = storage.read_json(storage.join(uri, feature_report.DATA))
    _answer(report | {"page": storage.join(uri, feature_report.PAGE)}, as_json, _show_report)


def _show_report(report: dict[str, Any]) -> None:
    moved = {one["name"]: one for one in report["drift"]}
    needed = {one["name"]: one["loss"] for one in report["importance"]}
    rows = [
        {**one, "psi": moved.get(one["name"], {}).get("psi"), "drift": moved.get(one["name"], {}).get("verdict")}
        for one in report["summaries"]
    ]
    _rows(report["title"], rows, ["name", "missing", "missing_training", "mean", "psi", "drift"])
    if needed:
        title = f"importance: what recall {report['metric']:.4f} loses without"
        _rows(title, [{"feature": name, "loss": loss} for name, loss in needed.items()], ["feature", "loss"])
    for group in report["redundant"]:
        screen.print(f"say the same: {', '.join(group)}", markup=False)
    for note in report["notes"]:
        screen.print(note, markup=False)
    screen.print(f"page: {report['page']}", markup=False, soft_wrap=True)


@features.command("release")
def features_release(
    statistic: Annotated[str, typer.Argument(help="events: how many; spend: the value of purchases.")],
    as_of: Annotated[str, typer.Option(help="What was known at this moment, such as 2026-01-15.")],
    by: Annotated[str, typer.Option(help="category, the items' first level; events also by event_type.")] = "category",
    as_json: AsJson = False,
) -> None:
    """Counts or sums, with differential privacy: off until privacy.epsilon is set; the ledger keeps the budget."""
    from evensong.pipelines import release

    answer = release.run(load_settings(), Night.model_validate({"as_of": as_of}), statistic, by)
    _answer(answer, as_json, _show_release)


def _show_release(answer: dict[str, Any]) -> None:
    statistic, column = answer["name"].split()[0], answer["name"].split()[2]
    rows = [{column: name, statistic: value} for name, value in answer["values"].items()]
    _rows(answer["name"], rows, [column, statistic])
    screen.print(
        f"epsilon {answer['epsilon']:g}, noise of scale {answer['scale']:g}; spent {answer['spent']:g} of "
        f"{answer['budget']:g}; ledger {answer['ledger']}",
        markup=False,
    )


def _read_dictionary(path: Path) -> Any:
    from evensong.errors import SourceError
    from evensong.features.dictionary import Dictionary

    if not path.exists():
        raise SourceError(
            f"{path}: expected a file that `evensong features list --json` wrote, there is none; "
            "two versions are compared by `evensong registry diff V1 V2`"
        )
    try:
        return Dictionary.model_validate({"features": json.loads(path.read_text())["features"]})
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"no {error}" if isinstance(error, KeyError) else str(error).split("\n")[0]
        raise SourceError(
            f"{path}: expected what `evensong features list --json` prints, found {found}; write the file with it"
        ) from error


# ---------------------------------------------------------------- serving


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Loopback unless you say otherwise.")] = None,
    port: Annotated[int | None, typer.Option(min=1, max=65535)] = None,
    as_json: AsJson = False,
) -> None:
    """Run the recommendation service until SIGTERM or Ctrl-C; the JSON is its address, once it answers."""
    from evensong.serving.server import run

    asked = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    run(load_settings(**({"serving": asked} if asked else {})), _print_json if as_json else None)


@app.command()
def up(as_json: AsJson = False) -> None:
    """Run Airflow, MLflow and the service, supervised; Ctrl-C ends all. The JSON is the addresses, once all answer."""
    from evensong.launch import supervisor

    supervisor.up(load_settings(), _print_json if as_json else None)


@app.command()
def demo(as_json: AsJson = False) -> None:
    """A simulated shop, three nights through Airflow, a champion, recommendations on the screen."""
    from evensong.launch import demo as demonstration

    result = demonstration.run(load_settings(), show=not as_json)
    if as_json:
        _print_json(result)


@app.command()
def recommend(
    user_id: Annotated[str, typer.Argument(help="Whose recommendations.")],
    k: Annotated[int | None, typer.Option(help="How many items.")] = None,
    as_json: AsJson = False,
) -> None:
    """One answer from the champion, without the service."""
    from evensong.serving import once

    _answer(once.answer(load_settings(), user_id, k), as_json, _show_recommendations)


def _show_recommendations(answer: dict[str, Any]) -> None:
    why = f" ({answer['reason']})" if answer["reason"] else ""
    title = f"{answer['user_id']}: version {answer['model_version']}, {answer['source']}{why}"
    _rows(title, answer["items"], ["rank", "item_id", "title", "category", "score", "source"])


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """What is wrong here, and what to do about it; exit code 1 when something is bad."""
    from evensong.launch.checks import examine

    findings = [finding.model_dump() for finding in examine(load_settings())]
    _answer(findings, as_json, lambda found: _rows("doctor", found, ["piece", "state", "message"]))
    if any(finding["state"] == "bad" for finding in findings):
        raise typer.Exit(1)


@app.command()
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="The settings guide, with defaults.")] = False,
    as_json: AsJson = False,
) -> None:
    """Every setting, its value now, and how to write it."""
    if markdown:
        print(_settings_guide())
        return
    rows = [setting.model_dump() for setting in describe(load_settings())]
    _answer(rows, as_json, _show_settings)


def _show_settings(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        style = "green" if row["is_set"] else "cyan"
        screen.print(f"[bold]{row['variable']}[/bold]", end=" ")
        screen.print(row["value"] or "none", style=style, markup=False, highlight=False, soft_wrap=True)
        screen.print(f"    {row['meaning']}", markup=False, highlight=False)


def _settings_guide() -> str:
    lines = [
        "# Settings",
        "",
        "Written by `evensong settings --markdown`. Each is an environment variable, or a key of `evensong.yaml` in",
        "the working folder (or of the file that `EVENSONG_CONFIG` names): `EVENSONG_SERVING__PORT=9000` is",
        "`serving: {port: 9000}`. The environment wins over the file; an unknown key is refused. Credentials",
        "stand in no file: S3 takes boto3's (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` …), the others a URL.",
        "",
        "| variable | default | meaning |",
        "|---|---|---|",
    ]
    for setting in describe(Settings.model_construct()):
        default = f"`{setting.default}`" if setting.default else ""
        lines.append(f"| `{setting.variable}` | {default} | {setting.meaning} |".replace("||", "| |"))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
