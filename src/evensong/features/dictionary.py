"""The feature dictionary: every feature with type, owner, meaning, source and window, and a version of its definition.

Nothing is written down twice: the features of the store come from the declared views, those of the models from the
declared columns. A version is a hash of the declaration, of the settings that decide the value, and of the code itself
(`definitions`): words and layout change no version; another window does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from evensong.errors import BundleError, ConfigurationError
from evensong.features.columns import Column, CrossColumn, ImageColumn, TextColumn, nearest, places_of
from evensong.features.declarations import View, text
from evensong.features.definitions import code_hash, feature_version, place_of, short_hash
from evensong.features.encoders import known_fingerprint
from evensong.features.shop_columns import ALIASES, active_views, declared
from evensong.features.views import declared_views
from evensong.settings import Settings
from evensong.types import Value

_FITTED = "evensong.features.fitted_columns:fit"
_APPLIED = "evensong.features.fitted_columns:FittedColumns"
_PAIRS = "evensong.features.pair_crosses:PairCrosses"
_ENTITIES = {"users": "user_id", "items": "item_id"}


class FeatureEntry(Value):
    """One feature."""

    name: str
    """`view.feature`."""
    type: str
    entity: str
    owner: str
    description: str
    source: str
    """The tables of the lake that it comes from."""
    window: str
    function: str
    parameters: dict[str, str]
    """The settings that its value depends on."""
    services: tuple[str, ...]
    """The feature services that hand it over; none: the store does not serve it. Columns of the models are computed
    from what it serves, and travel in the bundle."""
    version: str


class Change(Value):
    """A feature that two dictionaries describe differently."""

    name: str
    fields: dict[str, tuple[str, str]]
    """Field to its value before and after; `version` among them when the definition changed."""


class Difference(Value):
    """What lies between two dictionaries."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]


class Dictionary(Value):
    """All features, sorted by name."""

    features: tuple[FeatureEntry, ...]

    @property
    def version(self) -> str:
        """Changes when a feature comes, goes, or is defined differently."""
        return short_hash([[feature.name, feature.version, list(feature.services)] for feature in self.features])

    def show(self, name: str) -> FeatureEntry:
        """The feature of that name; the view may be left out where that is clear.

        Raises:
            ConfigurationError: there is none, or there are several.
        """
        found = [f for f in self.features if f.name == name or f.name.partition(".")[2] == name]
        if len(found) == 1:
            return found[0]
        if found:
            raise ConfigurationError(f"{name} is the name of several features: {', '.join(f.name for f in found)}")
        names = {f.name for f in self.features} | {f.name.partition(".")[2] for f in self.features}
        raise ConfigurationError(f"no feature is called {name}{nearest(name, names)}")


def build_dictionary(settings: Settings) -> Dictionary:
    """The dictionary of this code under these settings."""
    active = active_views(settings.features)
    entries: list[FeatureEntry] = []
    for view in declared_views(settings.features).values():
        # an optional view that no column reads is declared, and stays empty
        is_served = not view.optional or view.name in active
        entries.extend(_of_view(view, settings, (view.service,) if is_served else ()))
    entries.extend(_of_columns(settings))
    entries.extend(_of_pairs(settings))
    return Dictionary(features=tuple(sorted(entries, key=lambda entry: entry.name)))


def list_features(settings: Settings) -> list[FeatureEntry]:
    """Every feature, sorted by name."""
    return list(build_dictionary(settings).features)


def show(settings: Settings, name: str) -> FeatureEntry:
    """One feature; see `Dictionary.show`."""
    return build_dictionary(settings).show(name)


def dictionary_version(settings: Settings) -> str:
    """The version for a bundle's manifest."""
    return build_dictionary(settings).version


def diff(before: Dictionary, after: Dictionary) -> Difference:
    """What came, went and changed from one dictionary to another."""
    old = {feature.name: feature for feature in before.features}
    new = {feature.name: feature for feature in after.features}
    changed = []
    for name in sorted(old.keys() & new.keys()):
        was, now = old[name].model_dump(mode="json"), new[name].model_dump(mode="json")
        fields = {field: (text(was[field]), text(now[field])) for field in was if was[field] != now[field]}
        if fields:
            changed.append(Change(name=name, fields=fields))
    return Difference(
        added=tuple(sorted(new.keys() - old.keys())),
        removed=tuple(sorted(old.keys() - new.keys())),
        changed=tuple(changed),
    )


def for_manifest(dictionary: Dictionary, service: str) -> dict[str, Any]:
    """What a bundle's manifest records of the features that its models read.

    Raises:
        ConfigurationError: no feature belongs to the service.
    """
    features = {entry.name: entry.version for entry in dictionary.features if service in entry.services}
    if not features:
        services = {name for entry in dictionary.features for name in entry.services}
        raise ConfigurationError(f"no feature service is called {service}{nearest(service, services)}")
    return {"service": service, "dictionary_version": dictionary.version, "versions": features}


def check_served(manifest: Mapping[str, Any], served: Dictionary | Mapping[str, Any]) -> None:
    """Refuses a bundle whose features the store does not serve, by name and by definition.

    Args:
        manifest: what `for_manifest` gave when the bundle was made.
        served: the dictionary of the code that fills the store, or what `for_manifest` gave when it was filled.

    Raises:
        BundleError: a feature is missing or defined differently, or the manifest records none.
    """
    versions = manifest.get("versions")
    service = str(manifest.get("service"))
    if not isinstance(versions, Mapping) or not versions:
        raise BundleError("the bundle's manifest names no features; train and register it again")
    if isinstance(served, Dictionary):
        there = {entry.name: entry.version for entry in served.features if service in entry.services}
    else:
        there = dict(served.get("versions", {})) if served.get("service") == service else {}
    missing = sorted(name for name in versions if name not in there)
    changed = sorted(name for name, version in versions.items() if name in there and there[name] != version)
    problems = [f"not served: {', '.join(missing)}"] if missing else []
    problems += [f"defined differently: {', '.join(changed)}"] if changed else []
    if problems:
        raise BundleError(
            f"the bundle was trained on other features of {service} than are served ({'; '.join(problems)}); "
            "serve it with the code that it was trained with, or train again"
        )


def _of_view(view: View, settings: Settings, services: tuple[str, ...]) -> Iterator[FeatureEntry]:
    """The features of a view."""
    for feature in view.features:
        yield FeatureEntry(
            name=f"{view.name}.{feature.name}",
            type=str(feature.dtype),
            entity=view.entity,
            owner=view.owner,
            description=feature.description,
            source=", ".join(view.input.tables),
            window=view.window(feature, settings),
            function=place_of(view.function),
            parameters=view.parameters(settings),
            services=services,
            version=feature_version(view, feature, settings),
        )


def _of_columns(settings: Settings) -> Iterator[FeatureEntry]:
    """The columns of the models: the built-in ones, and people's own as their file declares them."""
    found = declared(settings.features)
    code = [code_hash(_FITTED), code_hash(_APPLIED)]
    for table, columns in (("users", found.users), ("items", found.items), ("items", found.moving)):
        for column in columns.root:
            is_ours = column.name in found.built_in
            declaration = column.model_dump(mode="json")
            encoder = _encoder(column)
            yield FeatureEntry(
                name=f"columns_{table}.{column.name}",
                type=column.kind,
                entity=_ENTITIES[table],
                owner="evensong" if is_ours else "you",
                description=f"{'A column of the models' if is_ours else 'Your own column'}: {_said_of(column)}.",
                source=", ".join(ALIASES[table].get(place, place) for place in places_of(column)) or table,
                window="",
                function=_FITTED,
                parameters={key: text(value) for key, value in declaration.items() if key != "name"} | encoder,
                services=(),
                version=short_hash([table, declaration, encoder, code]),
            )


def _of_pairs(settings: Settings) -> Iterator[FeatureEntry]:
    """The crosses of what a user is with what an item is."""
    pairs = declared(settings.features).pairs
    parts = {
        f"{table}.{column.name}": column.model_dump(mode="json")
        for table, columns in (("users", pairs.users), ("items", pairs.items))
        for column in columns.root
    }
    for cross in pairs.crosses:
        yield FeatureEntry(
            name=f"columns_pairs.{cross.name}",
            type="cross",
            entity="user_id, item_id",
            owner="you",
            description=f"Your own column: {' x '.join(cross.columns)}.",
            source=", ".join(cross.columns),
            window="",
            function=_PAIRS,
            parameters={"columns": text(list(cross.columns)), "num_buckets": text(cross.num_buckets)},
            services=(),
            version=short_hash(
                [cross.model_dump(mode="json"), [parts[name] for name in cross.columns], code_hash(_PAIRS)]
            ),
        )


def _said_of(column: Column) -> str:
    if isinstance(column, CrossColumn):
        return " x ".join(column.columns)
    return f"{column.kind} of {', '.join(places_of(column))}"


def _encoder(column: Column) -> dict[str, str]:
    """The mark of the pretrained model that a column reads with: another model of the same name is another feature."""
    if not isinstance(column, TextColumn | ImageColumn) or column.encoder == "tfidf":
        return {}
    return {"encoder_fingerprint": known_fingerprint(column.encoder) or "not on this machine"}
