"""Days of the simulated shop, written as a source: before a champion with a wide logging policy, then with the
champion's slates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from evensong.data import sources, storage
from evensong.data.contract_folder import SHOP
from evensong.data.simulator import (
    Policy,
    Shop,
    ShopConfig,
    Slates,
    popularity_policy,
    warmup_policy,
    widen,
)
from evensong.data.simulator.world import Generator
from evensong.errors import ConfigurationError
from evensong.features import filtering
from evensong.pipelines.night import hold_home
from evensong.settings import Settings
from evensong.types import TABLES, Night, Value

SOURCE = "simulator"
#: Beside a shop that lives on by itself.
LIVES_ON = "lives_on.json"
EXPLORATION = 0.2
WAIT_SECONDS = 30.0
PolicyName = Literal["warmup", "popularity", "champion"]
POLICIES: tuple[PolicyName, ...] = ("warmup", "popularity", "champion")


class DayRecord(Value):
    """Beside a day's tables: that they are complete, who filled the slates, and the day's figures."""

    date: date
    asked: PolicyName
    """The policy that the run asked for."""
    used: PolicyName
    """The policy that filled the slates: `warmup` where a champion was asked for and there was none."""
    champion: str | None = None
    """The model version, when one filled the slates."""
    exploration: float
    summary: dict[str, Any]


def run(
    settings: Settings,
    *,
    days: int = 1,
    start: date | None = None,
    seed: int | None = None,
    policy: PolicyName = "champion",
    config: ShopConfig | None = None,
    exploration: float = EXPLORATION,
    lives_on: bool | None = None,
    on_day: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Simulate days of the shop into `simulator/{interactions,items,users}/DATE.parquet` and register it as a source.

    One home holds one shop: the first run decides its config, and `start` its opening day; later runs go on where it
    stands, or give the same days again. A day that was simulated before is written again with identical content; one
    that a champion filled is history and stays as it is, for the features of that night are gone.

    Args:
        days: how many; 0 where there is a shop and only `lives_on` is to change.
        start: the first of them; without it the day after the last one, or the shop's opening day.
        seed: the shop's; shorthand for a config that differs in nothing else.
        policy: who fills the slates. `warmup` mixes popular, personal and random items; the others give
            a share `exploration` of their requests to that mixture. The champion of a day is the newest one of a
            night up to its midnight; until there is one the warm-up policy stands in, and the day's `policy` says so.
        lives_on: whether from now on each night lives the days up to its `as_of` by itself; none: as before.
        on_day: called with each day's summary as it is done.

    Returns:
        `location`, `source`, `start`, `days` (one summary each: counts, `click_rate`, and free of noise, from the
        truth, `expected_click_rate` of the slates shown and `popularity_click_rate` of what popularity would have
        shown the same users at the same moments), and totals.

    Raises:
        ConfigurationError: another shop lives here, or the days do not join on to those that were simulated.
        BusyError: a night or another simulation runs in this home.
    """
    location = settings.place("simulator")
    if days < 1 and (days or lives_on is None or not storage.exists(storage.join(location, SHOP))):
        raise ConfigurationError(f"days: expected 1 or more, got {days}")
    if policy not in POLICIES:
        raise ConfigurationError(f"policy: expected one of {', '.join(POLICIES)}, got {policy!r}")
    if not 0 <= exploration <= 1:
        raise ConfigurationError(f"exploration: expected a share from 0 to 1, got {exploration}")
    # a night that runs meanwhile would change the features that a champion's slates come from
    with hold_home(settings, WAIT_SECONDS):
        shop = Shop(_config(location, config, seed, start))
        first = start or _next_day(location, shop.config)
        _replay(location, shop, first)
        lived = []
        for number in range(days):
            record = _day(settings, location, shop, first + timedelta(days=number), policy, exploration)
            lived.append(record.summary)
            if on_day:
                on_day(record.summary)
        _register(settings, location)
        if lives_on is not None:
            storage.write_json(storage.join(location, LIVES_ON), lives_on)
    totals = {name: sum(day[name] for day in lived) for name in ("events", "impressions", "clicks", "purchases")}
    return {"location": location, "source": SOURCE, "start": first.isoformat(), "days": lived, **totals}


def live_on(settings: Settings, night: Night) -> int:
    """Live the days that a shop which lives on by itself still owes a night, with the champion's slates; how many.

    For a night, which holds the home. A day that was lived before is not lived again, so a rerun changes nothing.
    """
    location = settings.place("simulator")
    marker = storage.join(location, LIVES_ON)
    if not storage.exists(marker) or not storage.read_json(marker):
        return 0
    days = days_owed(settings, night)
    if days:
        shop = Shop(_config(location, None, None, None))
        _replay(location, shop, days[0])
        for day in days:
            _day(settings, location, shop, day, "champion", EXPLORATION)
        _register(settings, location)
    return len(days)


def days_owed(settings: Settings, night: Night) -> list[date]:
    """The whole days up to a night's `as_of` that the shop has not lived; none where the night does not read it."""
    until = lived_until(settings, night)
    if until is None:
        return []
    return [until.date() + timedelta(days=number) for number in range((night.as_of - until).days)]


def lived_until(settings: Settings, night: Night) -> datetime | None:
    """The end of the last day that the shop has lived; none where there is no shop, or the night does not read it."""
    location = settings.place("simulator")
    if night.source not in (SOURCE, sources.EVERY) or not storage.exists(storage.join(location, SHOP)):
        return None
    return datetime.combine(_next_day(location, _config(location, None, None, None)), time(), UTC)


def advice(settings: Settings, night: Night) -> str | None:
    """What a person does about a night that the shop has not lived up to; none where that is not what is wrong."""
    days = days_owed(settings, night)
    if not days:
        return None
    return (
        f"the simulated shop has lived up to {days[0] - timedelta(days=1)}, and this night sees the days up to "
        f"{days[-1]}: run `evensong simulate --days {len(days)}`, then ingest again; with --lives-on every later night "
        "lives its days by itself"
    )


def _register(settings: Settings, location: str) -> None:
    known = sources.registered(settings.lake).get(SOURCE)
    if known and known.location != location:
        # the home was moved, and its shop with it
        sources.remove(settings.lake, SOURCE)
    sources.register(settings.lake, "contract", location, name=SOURCE)


def _day(settings: Settings, location: str, shop: Shop, day: date, policy: PolicyName, exploration: float) -> DayRecord:
    known = _record(location, day)
    if known and (known.asked, known.exploration) != (policy, exploration):
        raise ConfigurationError(
            f"{day}: was simulated with policy {known.asked} and exploration {known.exploration}, asked for {policy} "
            f"and {exploration}; ask for the same, simulate later days, or remove {location} for another shop"
        )
    if known and known.used == "champion":
        shop.replay(day, storage.read_frame(_table(location, "interactions", day)))
        return known
    version, slates = None, None
    if policy == "champion" and not known:
        version, slates = _champion(settings, shop, day)
    used: PolicyName = "warmup" if policy == "champion" and slates is None else policy
    if used == "warmup":
        filled = warmup_policy(shop)
    else:
        filled = widen(slates or popularity_policy(shop), shop, exploration)
    log = shop.day(day, filled)
    # whoever reads the folder in between finds no event without what it is about
    for name, frame in (("items", log.items), ("users", log.users), ("interactions", log.interactions)):
        storage.write_frame(_table(location, name, day), frame)
    summary = log.summary | {"policy": _described(policy, used, version)}
    record = DayRecord(date=day, asked=policy, used=used, champion=version, exploration=exploration, summary=summary)
    storage.write_json(storage.join(location, "days", f"{day}.json"), record.model_dump(mode="json"))
    return record


def _described(asked: PolicyName, used: PolicyName, version: str | None) -> str:
    if used == "champion":
        return f"champion version {version}"
    return "warmup, for there is no champion yet" if asked == "champion" else used


def _champion(settings: Settings, shop: Shop, day: date) -> tuple[str | None, Policy | None]:
    """The version and the slates of the champion as it stood at the day's midnight."""
    from evensong.registry import aliases, bundle

    midnight = datetime.combine(day, time(), UTC)
    champion = aliases.champion_before(settings, midnight + timedelta(microseconds=1))
    if champion is None:
        return None, None
    return champion.version, champion_policy(settings, shop, bundle.fetch(settings, champion.version))


def champion_policy(settings: Settings, shop: Shop, bundle: Path) -> Policy:
    """The bundle's recommendations, through the recommend function that serves, from the online store as it stands.

    What the service hides from a user is hidden here too, and so is what the shop does not offer at the moment. Where
    that leaves too few items, popular ones fill the slate.
    """
    from evensong.features.online import OnlineFeatures
    from evensong.recommender.funnel import Recommender

    recommender, online = Recommender.load(bundle), OnlineFeatures(settings)
    known = list(recommender.item_ids)
    items = recommender.prepare_items(online.items(known))
    popular = popularity_policy(shop, hide_seen=False)
    rule = settings.serving.filter

    def policy(
        user_ids: Sequence[str], available_item_ids: Sequence[str], k: int, at: datetime, rng: Generator
    ) -> Slates:
        offered = set(available_item_ids)
        gone = [item_id for item_id in known if item_id not in offered]
        asked = list(dict.fromkeys(user_ids))
        hidden: dict[str, Collection[str]] = dict.fromkeys(asked, ())
        if rule != "none":
            hidden = filtering.hidden(online.seen(asked), rule)
        chosen = recommender.recommend(
            online.users(asked), items, now=at, k=k, exclude={user: [*gone, *hidden[user]] for user in asked}
        ).sort("user_id", "rank")
        ranked: dict[str, list[str]] = dict(chosen.group_by("user_id", maintain_order=True).agg("item_id").iter_rows())
        fill = popular(asked[:1], available_item_ids, len(available_item_ids), at, rng).item_ids_BK[0].tolist()
        slate = {user: list(dict.fromkeys([*ranked.get(user, []), *fill[: 2 * k]]))[:k] for user in asked}
        item_ids_BK = np.array([slate[user] for user in user_ids], dtype=object)
        return Slates(item_ids_BK, np.ones(item_ids_BK.shape))

    return policy


def _config(location: str, config: ShopConfig | None, seed: int | None, start: date | None) -> ShopConfig:
    """The config of the shop that lives here, or of the one that now moves in."""
    uri = storage.join(location, SHOP)
    if not storage.exists(uri):
        new = config or ShopConfig()
        new = _validated({"seed": new.seed if seed is None else seed, "start": start or new.start}, new, "seed")
        storage.write_json(uri, new.model_dump(mode="json"))
        return new
    known = _validated(storage.read_json(uri), None, uri)
    wanted = config.model_copy(update={"start": known.start}) if config else known
    if seed is not None:
        wanted = wanted.model_copy(update={"seed": seed})
    if wanted != known:
        differing = sorted(name for name in ShopConfig.model_fields if getattr(wanted, name) != getattr(known, name))
        raise ConfigurationError(
            f"{uri}: another shop lives here; it differs in {', '.join(differing)}; "
            "simulate it in another EVENSONG_HOME, or remove the folder"
        )
    return known


def _validated(values: dict[str, Any], other: ShopConfig | None, where: str) -> ShopConfig:
    """The config of these values, the others as in `other`."""
    try:
        return ShopConfig.model_validate((other.model_dump() if other else {}) | values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}, got {e['input']!r}" for e in error.errors())
        raise ConfigurationError(f"{where}: expected the config of a shop: {problems}") from error


def _next_day(location: str, config: ShopConfig) -> date:
    day = config.start
    while _record(location, day):
        day += timedelta(days=1)
    return day


def _replay(location: str, shop: Shop, until: date) -> None:
    """Bring the shop to the morning of a day from what it has written."""
    if until < shop.config.start:
        raise ConfigurationError(
            f"start: the shop opened on {shop.config.start}, got {until}; choose a day from then on"
        )
    while shop.today < until:
        day = shop.today
        if _record(location, day) is None:
            raise ConfigurationError(f"start: {day} was not simulated yet, got {until}; simulate from {day} on")
        shop.replay(day, storage.read_frame(_table(location, "interactions", day)))


def _record(location: str, day: date) -> DayRecord | None:
    uri = storage.join(location, "days", f"{day}.json")
    return DayRecord.model_validate(storage.read_json(uri)) if storage.exists(uri) else None


def _table(location: str, name: str, day: date) -> str:
    assert name in TABLES
    return storage.join(location, name, f"{day}.parquet")
