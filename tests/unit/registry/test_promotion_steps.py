"""Register, gate and promote: the last steps of a night, and the same end after a rerun."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from tests.unit.evaluation.gate_world import figures, report_of
from tests.unit.registry.conftest import make_bundle, night, write_materialized
from tests.variants import first_daily

from evensong.data import storage
from evensong.errors import ConfigurationError, PromotionRefusedError, RegistryError
from evensong.features.dictionary import build_dictionary, for_manifest
from evensong.pipelines import dossier, gate, promote, recipe, register
from evensong.registry import commands, decisions, ledger, tracking, versions
from evensong.settings import Settings

Run = Callable[..., dict[str, Any]]


def evaluate(settings: Settings, day: int, gain: float, seed: int = 7) -> str:
    """What the evaluation of the night would have written, against the champion that it is compared with."""
    before = recipe.rival(settings, night(day, seed))
    per_user = figures(gain=gain, seed=day)
    values: dict[str, object] = {"as_of": night(day).as_of}
    if before is not None:
        name = f"champion v{before.version}"
        per_user = per_user.with_columns(pl.col("model").replace("champion v1", name))
        values["champion_version"] = before.version
    report = report_of(per_user.with_columns(pl.col("model").replace(name, "champion v1")) if before else per_user)
    champion = report.champion.model_copy(update={"model": name}) if before and report.champion else None
    place = settings.run_uri(night(day).run_id, "per_user.parquet")
    storage.write_frame(place, per_user)
    for name in ("validation", "leak_canary", "skew"):
        said = {"success": True, "message": "passed", "max_difference": 0.0}
        storage.write_json(settings.run_uri(night(day).run_id, f"{name}.json"), said)
    report = report.model_copy(
        update={
            **values,
            "champion": champion,
            "champion_version": before.version if before else None,
            "per_user_uri": place,
        }
    )
    return storage.write_json(settings.run_uri(night(day).run_id, "evaluation.json"), report.model_dump(mode="json"))


@pytest.fixture
def run(settings: Settings, tmp_path: Path) -> Run:
    """The last three steps of a night whose challenger gains so much."""

    def call(day: int, gain: float = 0.1, content: str | None = None, seed: int = 7) -> dict[str, Any]:
        folder = tmp_path / "made" / f"{day}-{content}-{seed}"
        if not folder.exists():
            make_bundle(folder, day, content or f"night {day} seed {seed}")
        of_seed = night(day, seed)
        evaluation = evaluate(settings, day, gain, seed)
        version = register.run(settings, of_seed, str(folder), evaluation)
        decision = gate.run(settings, of_seed, version, evaluation)
        return {"version": version, "decision": decision, **promote.run(settings, of_seed, version)}

    return call


def test_first_night_above_popularity_makes_a_champion(settings: Settings, run: Run) -> None:
    ended = run(1)
    assert (ended["version"], ended["champion"], ended["moved"]) == ("1", "1", True)
    line = ledger.read(settings)[-1]
    assert (line.actor, line.decision) == ("rule:gate", versions.get(settings, "1").tags["decision_hash"])


def test_better_night_replaces_the_champion_and_a_tie_does_not(settings: Settings, run: Run) -> None:
    run(1)
    assert run(2, gain=0.1)["champion"] == "2"
    tie = run(3, gain=0.0)
    assert (tie["champion"], tie["moved"]) == ("2", False)
    assert "not shown to be better than champion v2" in tie["reason"]
    assert [line.to_version for line in ledger.read(settings)] == ["1", "2"]


def test_rerun_of_any_night_ends_in_the_same_state(settings: Settings, run: Run) -> None:
    first = [run(1), run(2, gain=0.1), run(3, gain=0.0)]
    lines = ledger.read(settings)
    listed = commands.list_versions(settings)
    again = [run(1), run(2, gain=0.1), run(3, gain=0.0)]
    assert [ended["decision"] for ended in again] == [ended["decision"] for ended in first]
    assert [ended["version"] for ended in again] == ["1", "2", "3"]
    assert not any(ended["moved"] for ended in again)
    assert (ledger.read(settings), commands.list_versions(settings)) == (lines, listed)


def test_backfill_of_an_older_night_is_judged_and_never_moves_the_alias(settings: Settings, run: Run) -> None:
    run(1)
    run(3, gain=0.1)
    late = run(2, gain=0.1)
    assert (late["champion"], late["moved"]) == ("2", False)
    assert late["decision"]["promote"] is False
    assert "older than the champion's" in late["decision"]["reasons"][0]


@pytest.mark.parametrize(("gain", "champion"), [(0.0, "2"), (0.1, "3")])
def test_second_attempt_of_a_night_with_other_code_is_compared_with_the_first(
    settings: Settings, run: Run, monkeypatch: pytest.MonkeyPatch, gain: float, champion: str
) -> None:
    run(1)
    run(2, gain=0.1)
    monkeypatch.setattr(recipe, "_code", lambda: "other code")
    second = run(2, gain=gain, content="other code")
    assert second["champion"] == champion
    assert versions.get(settings, "3").tags["compared_with"] == "2"
    assert ledger.read(settings)[-1].from_version == ("2" if champion == "3" else "1")


@pytest.mark.parametrize("day", first_daily([2, 1]), ids=["a later night", "the first champion's night"])
def test_same_night_with_another_seed_keeps_the_champion_of_the_first_in_auto(
    settings: Settings, run: Run, day: int
) -> None:
    for number in range(1, day + 1):
        first = run(number, gain=0.1)
    again = run(day, gain=0.0, seed=8)
    assert (again["champion"], again["moved"]) == (first["champion"], False)
    assert again["version"] != first["version"]
    assert f"not shown to be better than champion v{first['version']}" in again["reason"]
    assert versions.get(settings, again["version"]).tags["compared_with"] == first["version"]
    # whichever of the two runs again ends the same
    lines = ledger.read(settings)
    assert run(day, gain=0.0, seed=8) == again
    assert run(day, gain=0.1)["decision"] == first["decision"]
    assert run(day, gain=0.0, seed=8) == again
    assert ledger.read(settings) == lines


def test_another_seed_that_is_better_replaces_the_first_and_both_can_run_again(settings: Settings, run: Run) -> None:
    first = [run(1), run(2, gain=0.1)]
    better = run(2, gain=0.1, seed=8)
    assert (better["champion"], better["moved"]) == ("3", True)
    lines = ledger.read(settings)
    again = [run(1), run(2, gain=0.1), run(2, gain=0.1, seed=8)]
    assert [one["decision"] for one in again] == [one["decision"] for one in [*first, better]]
    assert [one["champion"] for one in again] == ["3", "3", "3"]
    assert again[1]["reason"] == "version 3 of the same night took its place"
    assert ledger.read(settings) == lines
    # and the third is compared with the second
    third = run(2, gain=0.0, seed=9)
    assert (third["champion"], versions.get(settings, "4").tags["compared_with"]) == ("3", "3")


def test_seed_decided_before_another_became_champion_is_decided_again(
    settings: Settings, run: Run, tmp_path: Path
) -> None:
    run(1)
    made = []
    for seed in (8, 9):
        evaluation = evaluate(settings, 2, 0.1, seed)
        folder = str(make_bundle(tmp_path / str(seed), 2, f"seed {seed}"))
        made.append(register.run(settings, night(2, seed), folder, evaluation))
        gate.run(settings, night(2, seed), made[-1], evaluation)
    assert promote.run(settings, night(2, 8), made[0])["moved"]
    with pytest.raises(PromotionRefusedError, match="compared it with version 1, the champion is version 2 now"):
        promote.run(settings, night(2, 9), made[1])


def test_same_run_that_comes_out_in_other_bytes_keeps_what_it_made_first(settings: Settings, run: Run) -> None:
    run(1)
    run(2, gain=0.1)
    again = run(2, gain=0.1, content="rounded differently")
    assert (again["champion"], again["moved"]) == ("2", False)
    assert "champion v2 was made by this very night of the same data, code, settings and seed" in again["reason"]


def test_champion_that_other_settings_make_again_is_not_judged_against_itself(settings: Settings, run: Run) -> None:
    run(1)
    first = run(2, gain=0.1, content="the same")
    fewer = settings.evaluation.model_copy(update={"max_users": 7})
    other = settings.model_copy(update={"evaluation": fewer})
    evaluation = evaluate(other, 2, 0.0)
    folder = Path(settings.home).parent / "made" / "2-the same-7"
    assert register.run(other, night(2), str(folder), evaluation) == "2"
    assert gate.run(other, night(2), "2", evaluation) == first["decision"]
    assert promote.run(other, night(2), "2")["reason"] == "it already is the champion"


def test_rolled_back_version_needs_a_persons_word(settings: Settings, run: Run) -> None:
    run(1)
    run(2, gain=0.1)
    commands.rollback(settings, reason="clicks fell", actor="person:ada")
    again = run(2, gain=0.1)
    assert (again["champion"], again["moved"]) == ("1", False)
    assert "only a person can promote it again" in again["reason"]
    assert commands.promote(settings, "2", reason="the cause is fixed", actor="person:ada")["champion"] == "2"
    assert versions.champion(settings).version == "2"  # type: ignore[union-attr]


def test_champion_moved_between_gate_and_promote_is_refused(settings: Settings, run: Run, tmp_path: Path) -> None:
    run(1)
    run(2, gain=0.1)
    evaluation = evaluate(settings, 3, 0.1)
    version = register.run(settings, night(3), str(make_bundle(tmp_path / "late", 3, "x")), evaluation)
    gate.run(settings, night(3), version, evaluation)
    commands.rollback(settings, reason="clicks fell", actor="person:ada")
    with pytest.raises(PromotionRefusedError, match="compared it with version 2, the champion is version 1 now"):
        promote.run(settings, night(3), version)


def test_decision_on_the_version_is_the_one_in_the_runs_folder(settings: Settings, run: Run) -> None:
    ended = run(1)
    stored = decisions.read(settings, versions.get(settings, "1"))
    assert stored.model_dump(mode="json") == ended["decision"]
    assert storage.read_json(settings.run_uri(night(1).run_id, "decision.json")) == ended["decision"]
    tags = versions.get(settings, "1").tags
    assert tags["gate"] == "promote"
    assert "above popularity" in tags["gate_reasons"]


def test_edited_decision_is_not_obeyed(settings: Settings, run: Run) -> None:
    run(1)
    ended = run(2, gain=0.0)
    for place in Path(settings.model_artifacts).rglob("decision.json"):
        place.write_text(place.read_text().replace('"promote": false', '"promote": true'))
    with pytest.raises(RegistryError, match="its decision should hash to"):
        promote.run(settings, night(2), ended["version"])


def test_promote_without_a_gate_says_so(settings: Settings, tmp_path: Path) -> None:
    version = register.run(settings, night(1), str(make_bundle(tmp_path / "b", 1)), evaluate(settings, 1, 0.1))
    with pytest.raises(RegistryError, match="expected a gate's decision, found none; run the gate first"):
        promote.run(settings, night(1), version)


def test_missing_validation_fails_the_gate_closed(settings: Settings, tmp_path: Path) -> None:
    evaluation = evaluate(settings, 1, 0.1)
    Path(settings.run_uri(night(1).run_id, "validation.json")).unlink()
    version = register.run(settings, night(1), str(make_bundle(tmp_path / "b", 1)), evaluation)
    decision = gate.run(settings, night(1), version, evaluation)
    assert decision["reasons"] == ["input.validation cannot be computed: it needs the outcome of validation"]


@pytest.mark.parametrize(
    ("name", "said", "reason"),
    [
        ("leak_canary", {"success": False, "message": "1 leaked"}, "leak_canary: 1 leaked"),
        ("leak_canary", None, "input.leak_canary cannot be computed: it needs the outcome of leak_canary"),
        ("skew", {"success": False, "message": "price differs", "max_difference": 1.0}, "skew: price differs"),
        (
            "skew",
            {"success": True, "message": "passed", "max_difference": 0.1},
            "differ by at most 0.1, allowed 0.0001",
        ),
        ("skew", None, "input.skew cannot be computed"),
    ],
)
def test_gate_refuses_without_a_clean_canary_and_skew(
    settings: Settings, tmp_path: Path, name: str, said: dict[str, Any] | None, reason: str
) -> None:
    evaluation = evaluate(settings, 1, 0.1)
    place = Path(settings.run_uri(night(1).run_id, f"{name}.json"))
    place.unlink()
    if said is not None:
        storage.write_json(str(place), said)
    version = register.run(settings, night(1), str(make_bundle(tmp_path / "b", 1)), evaluation)
    decision = gate.run(settings, night(1), version, evaluation)
    assert decision["promote"] is False
    assert any(reason in one for one in decision["reasons"])


def test_gate_refuses_a_bundle_that_names_no_features(settings: Settings, tmp_path: Path) -> None:
    from evensong.registry import bundle

    folder = make_bundle(tmp_path / "b", 1)
    (folder / "manifest.json").unlink()
    bundle.write_manifest(folder, as_of=night(1).as_of, lake_versions={"interactions": 1}, seed=7)
    evaluation = evaluate(settings, 1, 0.1)
    version = register.run(settings, night(1), str(folder), evaluation)
    reasons = gate.run(settings, night(1), version, evaluation)["reasons"]
    assert reasons == ["input.features_served cannot be computed: it needs the outcome of features_served"]


def spoiled_features(entry: str, version: str | None) -> dict[str, Any]:
    """What the store would say of features of which one is another, or missing."""
    features = for_manifest(build_dictionary(Settings()), "recommender_v1")
    versions_of = {name: value for name, value in features["versions"].items() if name != entry}
    return features | {"versions": versions_of | ({entry: version} if version else {})}


@pytest.mark.parametrize(
    ("day", "features", "reason"),
    [
        (31, ("item_popularity.item_events_7d", "other"), "defined differently: item_popularity.item_events_7d"),
        (31, ("item_popularity.item_events_7d", None), "not served: item_popularity.item_events_7d"),
        (1, None, "the online store holds the features of 2026-03-01 00:00; materialize this night first"),
        (None, None, "nothing was materialized"),
    ],
)
def test_gate_refuses_what_the_store_does_not_serve(
    settings: Settings, tmp_path: Path, day: int | None, features: tuple[str, str | None] | None, reason: str
) -> None:
    if day is None:
        (settings.home / "lake" / "materialized.json").unlink()
    else:
        changed = {"features": spoiled_features(*features)} if features else {}
        write_materialized(settings.home, day, **changed)
    evaluation = evaluate(settings, 2, 0.1)
    version = register.run(settings, night(2), str(make_bundle(tmp_path / "b", 2)), evaluation)
    decision = gate.run(settings, night(2), version, evaluation)
    assert [check["name"] for check in decision["checks"] if not check["passed"]] == ["input.features_served"]
    assert reason in decision["reasons"][0]


def test_older_night_is_held_against_the_newer_features_that_are_served(settings: Settings, run: Run) -> None:
    write_materialized(settings.home, 3)
    run(3)
    late = run(2)
    assert not late["moved"]
    served = next(check for check in late["decision"]["checks"] if check["name"] == "input.features_served")
    assert served["passed"]


def test_version_of_an_airflow_run_says_which(settings: Settings, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "scheduled__2026-03-01T02:00:00+00:00")
    run(1)
    version = versions.get(settings, "1")
    assert version.tags["airflow_run"] == "scheduled__2026-03-01T02:00:00+00:00"
    said = json.loads(versions.read_attached(settings, version, "dossier.json"))
    assert said["lineage"]["airflow_run"] == "scheduled__2026-03-01T02:00:00+00:00"
    assert b"scheduled__2026-03-01T02:00:00+00:00" in versions.read_attached(settings, version, "dossier.html")


@pytest.mark.parametrize("where", first_daily(["in a run of Airflow", "configured", "neither"]))
def test_data_docs_of_the_dossier_open_in_airflow_where_it_is(
    settings: Settings, run: Run, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    run(1)
    place = settings.run_uri(night(1).run_id, "validation.json")
    storage.write_json(place, storage.read_json(place) | {"data_docs": "anywhere"})
    address = "http://127.0.0.1:8080"
    if where == "configured":
        address = "https://airflow.example"
        settings = settings.model_copy(update={"airflow": settings.airflow.model_copy(update={"url": f"{address}/"})})
    elif where == "in a run of Airflow":
        monkeypatch.setenv("AIRFLOW_CTX_DAG_RUN_ID", "scheduled__2026-03-01T02:00:00+00:00")
    else:
        monkeypatch.delenv("AIRFLOW_CTX_DAG_RUN_ID", raising=False)
    versions.delete_tag(settings, "1", "evidence_hash")
    gate.run(settings, night(1), "1", settings.run_uri(night(1).run_id, "evaluation.json"))
    said = json.loads(versions.read_attached(settings, versions.get(settings, "1"), "dossier.json"))["data_docs"]
    if where == "neither":
        assert said == settings.run_uri(night(1).run_id, "data_docs", "index.html")
    else:
        assert said == f"{address}/evensong/data-docs/2026-03-01T000000/index.html"


def test_second_version_of_a_night_is_seen_in_its_decision_and_its_dossier(settings: Settings, run: Run) -> None:
    run(1)
    run(2, gain=0.1)
    again = run(2, gain=0.1, seed=8)
    doubts = [check for check in again["decision"]["checks"] if check["doubtful"]]
    assert [check["name"] for check in doubts] == ["first_attempt"]
    assert "after v2" in doubts[0]["message"]
    page = versions.read_attached(settings, versions.get(settings, "3"), "dossier.html").decode()
    assert "Version 2 of this night" in page
    # the first is judged as the first, whenever it is judged
    versions.delete_tag(settings, "2", "evidence_hash")
    assert not any(check["doubtful"] for check in run(2, gain=0.1)["decision"]["checks"])


@pytest.mark.parametrize("broken", ["validation", "skew"])
def test_what_a_step_left_unreadable_fails_its_check_by_name(settings: Settings, tmp_path: Path, broken: str) -> None:
    evaluation = evaluate(settings, 1, 0.1)
    Path(settings.run_uri(night(1).run_id, f"{broken}.json")).write_text("{")
    version = register.run(settings, night(1), str(make_bundle(tmp_path / "b", 1)), evaluation)
    decision = gate.run(settings, night(1), version, evaluation)
    assert f"input.{broken}" in [check["name"] for check in decision["checks"] if not check["passed"]]
    assert any(f"{broken}: cannot be computed: JSONDecodeError" in reason for reason in decision["reasons"])
    assert versions.get(settings, version).tags["dossier_hash"]


ASKED_OF_USERS = {
    "better_than_champion.recall_at_20",
    "plausible_gain.recall_at_20",
    "not_worse.ndcg_at_10",
    *("slice.new_users", "slice.new_items", "slice.long_tail"),
}


@pytest.mark.parametrize(
    ("damaged", "content", "said"),
    first_daily(
        [
            ("per_user.parquet", None, "per_user: cannot be computed: .*per_user.parquet: expected a Parquet file"),
            (
                "evaluation.json",
                '{"as_of": ',
                "evaluation: cannot be computed: .*evaluation.json: the file: Invalid JSON",
            ),
            (
                "evaluation.json",
                '{"num_users": 5}',
                "evaluation: cannot be computed: .*evaluation.json: as_of: Field req",
            ),
        ]
    ),
)
def test_figures_that_cannot_be_read_keep_the_champion_and_name_every_question(
    settings: Settings, run: Run, tmp_path: Path, damaged: str, content: str | None, said: str
) -> None:
    run(1)
    evaluation = evaluate(settings, 2, 0.1)
    version = register.run(settings, night(2), str(make_bundle(tmp_path / "b", 2)), evaluation)
    place = Path(settings.run_uri(night(2).run_id, damaged))
    whole = place.read_bytes()
    place.write_bytes(whole[: len(whole) // 2] if content is None else content.encode())
    decision = gate.run(settings, night(2), version, evaluation)
    failed = {check["name"] for check in decision["checks"] if not check["passed"]}
    assert failed >= ASKED_OF_USERS
    assert (decision["promote"], decision["needs_review"]) == (False, False)
    assert any(re.match(said, reason) for reason in decision["reasons"])
    if damaged == "evaluation.json":
        assert failed >= {"enough_users", "above_popularity.recall_at_20", "guardrail.coverage"}
    assert versions.get(settings, version).tags["dossier_hash"]
    assert promote.run(settings, night(2), version)["champion"] == "1"
    # the file is put back, and the night is judged
    place.write_bytes(whole)
    assert gate.run(settings, night(2), version, evaluation)["promote"]


def test_bundle_that_cannot_be_opened_fails_closed_with_a_dossier(settings: Settings, tmp_path: Path) -> None:
    evaluation = evaluate(settings, 1, 0.1)
    users = pl.DataFrame({"user_id": ["u1"]})
    storage.write_frame(settings.run_uri(night(1).run_id, "training_set", "users_holdout.parquet"), users)
    version = register.run(settings, night(1), str(make_bundle(tmp_path / "b", 1)), evaluation)
    decision = gate.run(settings, night(1), version, evaluation)
    assert [check["name"] for check in decision["checks"] if not check["passed"]] == ["input.bundle"]
    data = json.loads(versions.read_attached(settings, versions.get(settings, version), "dossier.json"))
    assert data["decision"] == decision
    assert data["missing"].keys() >= {"examples", "drift"}


def test_dossier_with_a_part_that_breaks_in_any_way_has_a_gap_and_no_password(
    settings: Settings, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise pl.exceptions.ComputeError("postgresql://ada:secret@db/x is away")

    monkeypatch.setattr(dossier, "drift", broken)
    ended = run(1)
    assert ended["moved"]
    data = json.loads(versions.read_attached(settings, versions.get(settings, "1"), "dossier.json"))
    assert data["missing"]["drift"] == "ComputeError: postgresql://ada:***@db/x is away"


def test_dossier_shows_the_largest_difference_of_each_served_feature(settings: Settings, tmp_path: Path) -> None:
    evaluation = evaluate(settings, 1, 0.1)
    one = {"name": "price", "num_values": 9, "num_different": 1, "max_difference": 1e-6, "served": "1.5"}
    said = {"success": True, "message": "9 values of 1 request", "max_difference": 1e-6, "largest": [one]}
    storage.write_json(settings.run_uri(night(1).run_id, "skew.json"), said)
    version = register.run(settings, night(1), str(make_bundle(tmp_path / "b", 1)), evaluation)
    gate.run(settings, night(1), version, evaluation)
    data = json.loads(versions.read_attached(settings, versions.get(settings, version), "dossier.json"))
    assert [(one["name"], one["max_difference"], one["served"]) for one in data["skew"]] == [("price", 1e-6, "1.5")]
    assert data["skew_message"] == "9 values of 1 request"
    assert "skew" not in data["missing"]


def test_missing_policy_names_the_setting(settings: Settings) -> None:
    lost = settings.model_copy(
        update={"registry": settings.registry.model_copy(update={"policy_path": Path("no.yaml")})}
    )
    with pytest.raises(ConfigurationError, match=r"no\.yaml: expected the promotion policy.*registry\.policy_path"):
        gate.read_policy(lost)


def test_night_has_one_run_with_parameters_and_prefixed_metrics(settings: Settings, run: Run) -> None:
    run(1)
    run(1)
    tracking.log_timings(settings, night(1), {"train_retriever": 12.5})
    client = tracking.client(settings)
    runs = client.search_runs([tracking.experiment_id(settings)])
    assert len(runs) == 1
    metrics = runs[0].data.metrics
    assert {
        "challenger.recall_at_20",
        "popularity.ndcg_at_10",
        "index_recall",
        "seconds.train_retriever",
    } <= metrics.keys()
    assert runs[0].data.params["night.seed"] == "7"
    assert len(client.get_metric_history(runs[0].info.run_id, "index_recall")) == 1


def test_rerun_with_other_parameters_gets_a_run_of_its_own(settings: Settings, run: Run) -> None:
    run(1)
    tracking.log_params(settings, night(1), {"retriever.dimension": 8})
    client = tracking.client(settings)
    runs = client.search_runs([tracking.experiment_id(settings)], order_by=["start_time ASC"])
    assert ["evensong.superseded" in one.data.tags for one in runs] == [True, False]
    assert tracking.night_run(settings, night(1)) == runs[1].info.run_id


def test_description_tells_a_reviewer_the_figures_and_where_they_come_from(settings: Settings, run: Run) -> None:
    run(1)
    run(2, gain=0.1)
    text = versions.get(settings, "2").description
    assert "Night of 2026-03-02 00:00 UTC" in text
    assert "| metric | challenger | champion v1 | item_knn | popularity |" in text
    assert "| recall_at_20 | 0." in text
    assert "lake versions: `{" in text


def test_person_can_reject_a_version_and_not_the_champion(settings: Settings, run: Run) -> None:
    run(1)
    run(2, gain=0.0)
    commands.reject(settings, "2", reason="odd titles", actor="person:ada")
    assert commands.show(settings, "2")["tags"]["blocked"] == "rejected by person:ada: odd titles"
    with pytest.raises(PromotionRefusedError, match="is the champion; use `evensong registry rollback`"):
        commands.reject(settings, "1", reason="odd titles", actor="person:ada")


def test_commands_answer_what_can_be_printed_as_json(settings: Settings, run: Run) -> None:
    import json

    run(1)
    for answer in (
        commands.list_versions(settings),
        commands.show(settings, "champion"),
        commands.read_ledger(settings),
        commands.verify(settings),
    ):
        json.dumps(answer)
    assert commands.verify(settings)["sound"]
    assert commands.show(settings, "1")["moves"][0]["to_version"] == "1"


def test_dossier_lies_on_the_version_with_its_hash_and_is_linked(settings: Settings, run: Run) -> None:
    import hashlib

    run(1)
    run(2, gain=0.1)
    run(2, gain=0.1)
    version = versions.get(settings, "2")
    page = versions.read_attached(settings, version, "dossier.html")
    assert hashlib.sha256(page).hexdigest() == version.tags["dossier_hash"]
    data = versions.read_attached(settings, version, "dossier.json")
    assert hashlib.sha256(data).hexdigest() == version.tags["dossier_json_hash"]
    assert version.description.count("[Dossier](http://127.0.0.1:5000/#/experiments/") == 1
    assert f"/models/{version.model_id}/artifacts)" in version.description
    address = dossier.address(settings, "2")
    assert address.startswith("http://127.0.0.1:5000/#/")
    assert f"[Dossier]({address})" in version.description
    assert storage.read_bytes(settings.run_uri(night(2).run_id, "dossier.html")) == page
    assert b"night.as_of" in page
