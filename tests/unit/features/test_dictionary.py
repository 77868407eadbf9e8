"""The dictionary knows every feature, and a version changes exactly when a definition does."""

from __future__ import annotations

import ast
import dataclasses
from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from evensong.errors import BundleError, ConfigurationError
from evensong.features import definitions, views
from evensong.features.definitions import code_hash
from evensong.features.dictionary import Dictionary, build_dictionary, check_served, diff, for_manifest
from evensong.features.views import BUILT_IN
from evensong.settings import FeatureSettings, Settings, SplitSettings

CODE = '''
from datetime import timedelta

WINDOW = timedelta(days=7)


def feature(rows):
    """Counts."""
    return _helper(rows, WINDOW)


def _helper(rows, window):
    return rows


def unrelated(rows):
    return None
'''


@pytest.fixture(scope="module")
def now() -> Dictionary:
    return build_dictionary(Settings())


def hash_of(code: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hash of `feature` in a module with this code."""
    monkeypatch.setattr(definitions, "_tree", lambda module: ast.parse(code if module == "evensong.sample" else ""))
    return code_hash("evensong.sample:feature")


def test_every_feature_of_the_contract_is_there_with_what_people_ask(now: Dictionary) -> None:
    entry = now.show("user_activity.num_events_7d")
    assert (entry.type, entry.entity, entry.owner, entry.window) == ("Int64", "user_id", "evensong", "7 days")
    assert entry.source == "interactions"
    assert entry.services == ("recommender_v1",)
    assert "split.positive_event_types" in entry.parameters
    assert all(feature.description and feature.version for feature in now.features)
    assert now.show("seen_item_ids").services == ("serving_filters_v1",)
    names = [feature.name for feature in now.features]
    assert names == sorted(set(names))


def test_a_setting_that_a_feature_reads_changes_its_version_and_no_other(now: Dictionary) -> None:
    other = build_dictionary(Settings(features=FeatureSettings(seen_length=7)))
    changed = {change.name.partition(".")[0] for change in diff(now, other).changed}
    assert changed == {"user_seen"}
    positive = build_dictionary(Settings(split=SplitSettings(positive_event_types=("purchase",))))
    changed = {change.name.partition(".")[0] for change in diff(now, positive).changed}
    of_positives = {"user_history", "user_activity", "item_popularity", "user_dynamics", "user_sequence"}
    assert changed == of_positives | {"item_conversion", "user_seen"}
    rated = build_dictionary(Settings(split=SplitSettings(min_value={"rating": 4})))
    changed = {change.name.partition(".")[0] for change in diff(now, rated).changed}
    assert changed == of_positives | {"item_conversion"}, "a low rating has been seen all the same"
    fewer = build_dictionary(Settings(features=FeatureSettings(num_top_categories=3)))
    changed = {change.name.partition(".")[0] for change in diff(now, fewer).changed}
    assert changed == {"user_history", "user_dynamics", "columns_users"}
    assert other.version != now.version != positive.version


def test_the_columns_of_the_models_are_listed_whatever_made_them(now: Dictionary) -> None:
    columns = {feature.name: feature for feature in now.features if feature.name.startswith("columns_")}
    assert {
        *("columns_users.age_bucket", "columns_users.age_x_gender_x_level", "columns_users.taste"),
        *("columns_users.last_types", "columns_users.spend_7d", "columns_items.title_tfidf"),
        *("columns_items.price_rank", "columns_items.purchase_rate", "columns_items.item_decayed_events"),
    } <= columns.keys()
    rank = columns["columns_items.price_rank"]
    assert (rank.type, rank.entity, rank.owner, rank.source) == ("numeric", "item_id", "evensong", "price_rank")
    assert all(not column.services for column in columns.values()), "they travel in the bundle, fitted"
    fewer = build_dictionary(Settings(features=FeatureSettings(groups=("text",))))
    assert {f.name for f in fewer.features if f.name.startswith("columns_")} == {"columns_items.title_tfidf"}


def test_other_weights_of_an_encoder_are_another_feature(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 4}')
    (tmp_path / "model.safetensors").write_bytes(b"one")
    settings = Settings(features=FeatureSettings(groups=(), text_encoder=str(tmp_path)))
    before = build_dictionary(settings)
    (tmp_path / "model.safetensors").write_bytes(b"two")
    (change,) = diff(before, build_dictionary(settings)).changed
    assert change.name == "columns_items.title_meaning"
    assert change.fields.keys() == {"parameters", "version"}
    absent = Settings(features=FeatureSettings(groups=(), text_encoder="somebody/not-here"))
    assert build_dictionary(absent).show("title_meaning").parameters["encoder_fingerprint"] == "not on this machine"


@pytest.mark.parametrize(
    "change",
    [
        {"ttl": timedelta(days=3)},
        {
            "features": (
                dataclasses.replace(BUILT_IN[0].features[0], dtype=pl.List(pl.Int64())),
                *BUILT_IN[0].features[1:],
            )
        },
    ],
)
def test_time_to_live_and_type_are_part_of_a_definition(
    now: Dictionary, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    other = dataclasses.replace(BUILT_IN[0], **change)  # type: ignore[arg-type]
    monkeypatch.setattr(views, "BUILT_IN", (other, *BUILT_IN[1:]))
    changed = {c.name for c in diff(now, build_dictionary(Settings())).changed if "version" in c.fields}
    assert "user_history.recent_item_ids" in changed
    assert {name.partition(".")[0] for name in changed} == {"user_history"}


def test_owner_and_words_are_no_part_of_a_definition(now: Dictionary, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(BUILT_IN[0], owner="you", description="In other words.")
    monkeypatch.setattr(views, "BUILT_IN", (other, *BUILT_IN[1:]))
    changed = diff(now, build_dictionary(Settings())).changed
    assert {name for change in changed for name in change.fields} == {"owner"}


def test_two_readings_agree(now: Dictionary) -> None:
    assert build_dictionary(Settings()) == now
    assert Dictionary.model_validate_json(now.model_dump_json()).version == now.version
    assert diff(now, now).changed == ()


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""Counts."""', '"""Counts, otherwise said."""', True),
        ("WINDOW = timedelta(days=7)", "WINDOW = timedelta( days = 7 )  # a week", True),
        ("def feature(rows):", "def feature(rows: object) -> object:", True),
        ("    return None", "    return 5", True),
        ("days=7", "days=8", False),
        ("    return rows", "    return rows[1:]", False),
        ("_helper(rows, WINDOW)", "_helper(rows, 2 * WINDOW)", False),
    ],
)
def test_layout_and_words_change_nothing_and_code_does(
    old: str, new: str, same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hash_of(CODE, monkeypatch)
    assert old in CODE
    assert (hash_of(CODE.replace(old, new), monkeypatch) == before) is same


def test_a_difference_names_what_came_went_and_changed(now: Dictionary) -> None:
    first, second, *rest = now.features
    other = Dictionary(features=(second.model_copy(update={"type": "Float64", "version": "x"}), *rest))
    found = diff(now, other)
    assert found.removed == (first.name,)
    assert [change.name for change in found.changed] == [second.name]
    assert found.changed[0].fields["type"] == (second.type, "Float64")
    assert diff(other, now).added == (first.name,)


def test_a_service_refuses_a_bundle_with_other_features(now: Dictionary) -> None:
    manifest = for_manifest(now, "recommender_v1")
    check_served(manifest, now)
    fewer = Dictionary(features=tuple(f for f in now.features if f.name != "item_content.price"))
    with pytest.raises(BundleError, match=r"not served: item_content\.price"):
        check_served(manifest, fewer)
    older = {**manifest, "versions": manifest["versions"] | {"item_content.title": "0123"}}
    with pytest.raises(BundleError, match=r"defined differently: item_content\.title"):
        check_served(older, now)
    with pytest.raises(BundleError, match="names no features"):
        check_served({}, now)


def test_a_feature_that_is_not_read_may_change(now: Dictionary) -> None:
    manifest = for_manifest(now, "recommender_v1")
    check_served(manifest, build_dictionary(Settings(features=FeatureSettings(seen_length=7))))


def test_wrong_names_meet_the_nearest_ones(now: Dictionary) -> None:
    with pytest.raises(ConfigurationError, match="num_events_7d"):
        now.show("num_event_7d")
    with pytest.raises(ConfigurationError, match="recommender_v1"):
        for_manifest(now, "recomender_v1")


def test_peoples_own_columns_are_listed(tmp_path: Path, now: Dictionary) -> None:
    path = tmp_path / "columns.yaml"
    path.write_text("users: [{kind: categorical, name: city, source: attributes.city, min_count: 3}]")
    mine = build_dictionary(Settings(features=FeatureSettings(columns_path=path)))
    assert diff(now, mine).added == ("columns_users.city",)
    path.write_text("users: [{kind: categorical, name: city, source: attributes.city, min_count: 4}]")
    again = build_dictionary(Settings(features=FeatureSettings(columns_path=path)))
    assert "version" in diff(mine, again).changed[0].fields


def test_crosses_of_users_and_items_are_listed(tmp_path: Path, now: Dictionary) -> None:
    path = tmp_path / "columns.yaml"
    declaration = """
users: [{kind: categorical, name: land, source: attributes.land}]
crosses: [{name: land_x_cat, columns: [users.land, items.category_1], num_buckets: 100}]
"""
    path.write_text(declaration)
    mine = build_dictionary(Settings(features=FeatureSettings(columns_path=path)))
    assert diff(now, mine).added == ("columns_pairs.land_x_cat", "columns_users.land")
    cross = mine.show("land_x_cat")
    assert (cross.entity, cross.source) == ("user_id, item_id", "users.land, items.category_1")
    path.write_text(declaration.replace("attributes.land", "attributes.country"))
    again = build_dictionary(Settings(features=FeatureSettings(columns_path=path)))
    assert {change.name for change in diff(mine, again).changed} == {"columns_pairs.land_x_cat", "columns_users.land"}
