"""The command line: JSON on stdout, notes on stderr, and exit codes that a script can trust."""

import contextlib
import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import polars as pl
import pytest

from evensong import cli
from evensong.types import Night


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, empty_store: Path) -> None:
    """Every command finds MLflow's database, which takes seconds to make."""
    folder = tmp_path / "state" / "mlflow"
    folder.mkdir(parents=True)
    shutil.copy(empty_store, folder)


def evensong(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in this process, which has the libraries; as a script sees it below, where that differs."""
    out, said = io.StringIO(), io.StringIO()
    variables = {"EVENSONG_HOME": str(home / "state")}
    with (
        mock.patch.object(sys, "argv", ["evensong", *arguments]),
        mock.patch.dict(os.environ, variables),
        contextlib.chdir(home),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(said),
        pytest.raises(SystemExit) as ended,
    ):
        cli.main()
    code = ended.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), said.getvalue())


def start(home: Path, *arguments: str, stdout: int) -> subprocess.Popen[str]:
    """The command as a script starts it."""
    command = [sys.executable, "-m", "evensong.cli", *arguments]
    variables = {"PATH": "/usr/bin:/bin", "EVENSONG_HOME": str(home / "state"), "HOME": str(home)}
    return subprocess.Popen(command, cwd=home, env=variables, stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "movielens", "nowhere"], "nowhere"),
        (["import", "remove", "nothing"], "no source 'nothing'"),
        (["quarantine", "release"], "--reason"),
        (["quarantine", "release", "--reason", "looked at"], "there is nothing to release"),
        (["import", "events", "https://x/e.csv", "--user", "u", "--item", "i", "--time", "t"], "https:// is not read"),
        (["simulate", "--start", "nonsense"], "start: expected a day such as 2026-01-15, got 'nonsense'"),
        (["nightly", "--as-of", "soon"], "as_of"),
        (["nightly", "--as-of", "2026-13-45"], "as_of: expected a day such as 2026-01-15"),
        (["nightly", "--as-of", "2026-01-01", "--train-from", "nothing"], "train-from"),
        (["frobnicate"], "frobnicate"),
        (["registry", "show", "12"], "12"),
        (["recommend", "somebody"], "evensong nightly"),
        (
            ["recommend", "somebody", "--k", "0"],
            "a number from 1 to 200, got 0; ask for so many",
        ),
        (["recommend", "somebody", "--k", "10000"], "got 10000"),
        (["recommend", ""], "user_id"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_came(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = evensong(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_is_held_back_is_listed_and_released(tmp_path: Path) -> None:
    from evensong.data import quarantine
    from evensong.data.lake import Lake

    row = {"table": "users", "reason": "user_id is missing", "row": "{}", "as_of": datetime(2026, 1, 2, tzinfo=UTC)}
    Lake(str(tmp_path / "state" / "lake")).append_new(quarantine.TABLE, pl.DataFrame([row]))
    assert "user_id is missing" in evensong(tmp_path, "quarantine", "list").stdout
    done = evensong(tmp_path, "quarantine", "release", "--reason", "sent again", "--json")
    answer = json.loads(done.stdout)
    assert (answer["rows"], answer["reason"], done.returncode) == ({"users": 1}, "sent again", 0)
    (said,) = json.loads(evensong(tmp_path, "quarantine", "list", "--json").stdout)["released"]
    assert (said["by"], said["rows"]) == (answer["by"], 1)
    assert "no bad row counts" in evensong(tmp_path, "quarantine", "list").stdout


def test_an_error_is_json_too(tmp_path: Path) -> None:
    done = evensong(tmp_path, "import", "movielens", "nowhere", "--json")
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == done.returncode == 2
    assert "nowhere" in answer["error"]


@pytest.mark.parametrize(
    "arguments",
    [["frobnicate"], ["nightly"], ["registry", "show"], ["recommend", "u1", "--k", "many"], ["nightly", "-x"]],
)
def test_wrong_use_is_json_too(tmp_path: Path, arguments: list[str]) -> None:
    done = evensong(tmp_path, *arguments, "--json")
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == done.returncode == 2
    assert answer["error"]
    assert answer["error"] in done.stderr


def raising(error: BaseException) -> Any:
    def command(*_: Any, **__: Any) -> None:
        raise error

    return command


def test_what_was_made_anew_and_differs_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evensong.pipelines import reproduce

    for same, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(reproduce, "run", lambda *_, same=same: {"same": same})
        done = evensong(tmp_path, "reproduce", "3", "--json")
        assert (done.returncode, json.loads(done.stdout)) == (code, {"same": same})


def test_a_ledger_that_somebody_edited_exits_with_1(tmp_path: Path) -> None:
    ledger = tmp_path / "state" / "mlflow" / "ledger.jsonl"
    ledger.write_text('{"edited": true}\n')
    done = evensong(tmp_path, "registry", "ledger", "--verify", "--json")
    assert (done.returncode, json.loads(done.stdout)["sound"]) == (1, False)
    assert evensong(tmp_path, "doctor", "--json").returncode == 1
    ledger.unlink()
    done = evensong(tmp_path, "registry", "ledger", "--verify", "--json")
    assert (done.returncode, json.loads(done.stdout)["sound"]) == (0, True)


def test_a_defect_keeps_its_traceback_and_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evensong.registry import commands

    monkeypatch.setattr(commands, "list_versions", raising(KeyError("a column that nobody has")))
    done = evensong(tmp_path, "registry", "list", "--json")
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == done.returncode == 70
    assert "a column that nobody has" in answer["error"]
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/home/lake"), "make room"),
        (ConnectionRefusedError("redis://me:secret@store:6379 refused"), "`evensong doctor` says what"),
    ],
)
def test_a_full_disk_and_a_server_that_is_away_are_no_defects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    from evensong.registry import commands

    monkeypatch.setattr(commands, "list_versions", raising(error))
    done = evensong(tmp_path, "registry", "list")
    assert done.returncode == 2
    assert words in done.stderr
    assert "secret" not in done.stderr


def test_ctrl_c_exits_with_130(tmp_path: Path) -> None:
    process = start(tmp_path, "simulate", "--days", "5000", "--start", "2020-01-01", "--json", stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("state/simulator/days/*.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert json.loads(out) == {"error": "stopped", "exit_code": 130}
    assert "Traceback" not in said


def test_output_that_nobody_reads_ends_the_command_quietly(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = start(tmp_path, "settings", "--json", stdout=write)
    os.close(write)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 141
    assert "Traceback" not in said


def test_a_script_sees_the_exit_code(tmp_path: Path) -> None:
    process = start(tmp_path, "import", "movielens", "nowhere", "--json", stdout=subprocess.PIPE)
    out, said = process.communicate(timeout=60)
    assert process.returncode == json.loads(out)["exit_code"] == 2
    assert "nowhere" in said


def test_a_night_refused_by_validation_exits_with_1_and_its_run_says_why(tmp_path: Path) -> None:
    source = tmp_path / "orders.csv"
    source.write_text("who,what,moment\nann,tea,2026-01-01T10:00:00\nbob,jam,2026-01-02 11:00\n")
    evensong(tmp_path, "import", "events", str(source), "--user", "who", "--item", "what", "--time", "moment")
    done = evensong(tmp_path, "nightly", "--as-of", "2026-02-01", "--json")
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == done.returncode == 1
    assert "expected the newest event at most 3 days before as_of" in answer["error"]
    # a log without a screen tells what was at work when it stopped
    assert "begin validate" in done.stderr.splitlines()
    from evensong.registry import tracking
    from evensong.settings import Settings
    from evensong.types import Night

    settings = Settings(home=tmp_path / "state")
    run = tracking.client(settings).get_run(tracking.night_run(settings, Night.model_validate({"as_of": "2026-02-01"})))
    assert run.info.status == "FAILED"
    assert run.data.tags["evensong.failure"].startswith("ValidationFailedError: ")


@pytest.mark.parametrize("promote", [True, False])
def test_a_night_is_done_with_0_whether_the_gate_promotes_or_keeps_the_champion(tmp_path: Path, promote: bool) -> None:
    from evensong.pipelines import night
    from evensong.types import PromotionDecision

    decision = PromotionDecision(promote=promote, reasons=["recall_at_20 is 0.1, the champion's 0.2"])
    result = night.NightResult(
        as_of="2026-02-01T00:00:00+00:00",
        run_uri="runs/1",
        version="2",
        decision=decision,
        champion="1",
        metrics={"challenger": {"recall_at_20": 0.1}},
        seconds={"ingest": 0.1},
    )
    settings = cli.load_settings(home=tmp_path / "state")
    report = Path(settings.run_uri(Night.model_validate({"as_of": "2026-02-01"}).run_id, "validation.json"))
    report.parent.mkdir(parents=True)
    tables = {
        "items": {"quarantined": 3, "reasons": {"title is missing": 2, "price is below 0": 1}},
        "users": {"quarantined": 0, "reasons": {}},
    }
    report.write_text(json.dumps({"tables": tables}))
    with mock.patch.object(night, "run_night", return_value=result):
        done = evensong(tmp_path, "nightly", "--as-of", "2026-02-01", "--json")
        told = evensong(tmp_path, "nightly", "--as-of", "2026-02-01")
    assert done.returncode == told.returncode == 0
    assert json.loads(done.stdout)["quarantined"] == {"items": {"title is missing": 2, "price is below 0": 1}}
    assert "3 rows of items are quarantined, and nothing is learnt from them: 2 title is missing, 1 price" in said(told)
    assert json.loads(done.stdout)["decision"]["promote"] is promote
    assert ("not promoted; champion is version 1" in told.stdout) is not promote


def test_events_are_imported_by_a_mapping_and_only_once(tmp_path: Path) -> None:
    source = tmp_path / "orders.csv"
    source.write_text("who,what,moment\nann,tea,2026-01-01T10:00:00\nbob,jam,2026-01-02 11:00\n")
    mapping = ["--user", "who", "--item", "what", "--time", "moment", "--event-type", "purchase", "--json"]
    first = json.loads(evensong(tmp_path, "import", "events", str(source), *mapping).stdout)
    again = json.loads(evensong(tmp_path, "import", "events", str(source), *mapping).stdout)
    assert first == {"interactions": 2, "items": 2, "users": 2}
    assert again == {"interactions": 0, "items": 0, "users": 0}


def test_an_import_names_event_types_that_no_night_would_take(tmp_path: Path) -> None:
    source = tmp_path / "listens.csv"
    source.write_text("who,what,moment,kind\nann,tune,2026-01-01T10:00:00,listen\n")
    done = evensong(
        tmp_path, "import", "events", str(source), "--user", "who", "--item", "what", "--time", "moment",
        "--event-type", "kind", "--json",
    )  # fmt: skip
    assert done.returncode == 0
    assert "listen" in done.stderr
    assert "EVENSONG_VALIDATION__EVENT_TYPES=" in done.stderr
    assert json.loads(done.stdout)["interactions"] == 1


def test_sources_are_listed_and_removed(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("7;tea;2026-01-01T10:00:00;1,50\n")
    mapping = ["--no-header", "--user", "1", "--item", "2", "--time", "3", "--value", "4", "--time-zone", "Asia/Tokyo"]
    assert evensong(tmp_path, "import", "events", "orders.csv", *mapping).returncode == 0
    [source] = json.loads(evensong(tmp_path, "import", "list", "--json").stdout)
    assert (source["name"], source["kind"], source["location"]) == ("orders", "events", str(tmp_path / "orders.csv"))
    assert source["mapping"]["header"] is False
    assert "orders" in evensong(tmp_path, "import", "list").stdout
    assert json.loads(evensong(tmp_path, "import", "remove", "orders", "--json").stdout)["removed"] == "orders"
    assert json.loads(evensong(tmp_path, "import", "list", "--json").stdout) == []


def test_an_import_beside_the_simulated_shop_says_so(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("who,what,moment\nann,tea,2026-01-01\n")
    (tmp_path / "state" / "lake" / "sources").mkdir(parents=True)
    entry = json.dumps({"kind": "contract", "location": str(tmp_path), "mapping": None})
    (tmp_path / "state" / "lake" / "sources" / "simulator.json").write_text(entry)
    done = evensong(tmp_path, "import", "events", "orders.csv", "--user", "who", "--item", "what", "--time", "moment")
    assert done.returncode == 0
    assert "the data of simulator" in done.stderr
    assert "EVENSONG_HOME=" in done.stderr


def test_doctor_examines_an_empty_home_without_fault(tmp_path: Path) -> None:
    # a folder without the policy: the repository's counts, as it does in a night
    done = evensong(tmp_path, "doctor", "--json")
    findings = json.loads(done.stdout)
    assert {finding["piece"] for finding in findings} >= {
        "python",
        "home",
        "lake",
        "online store",
        "registry",
        "ledger",
    }
    assert all(finding["message"] for finding in findings)
    bad = [finding for finding in findings if finding["state"] == "bad" and finding["piece"] != "components"]
    assert bad == []
    assert done.returncode == any(finding["state"] == "bad" for finding in findings)


def test_settings_name_the_places_that_follow_from_the_home(tmp_path: Path) -> None:
    rows = json.loads(evensong(tmp_path, "settings", "--json").stdout)
    shown = {row["key"]: row for row in rows}
    assert shown["lake_uri"]["value"] == str(tmp_path / "state" / "lake")
    assert shown["mlflow_tracking_uri"]["value"] == f"sqlite:///{tmp_path}/state/mlflow/mlflow.db"
    assert shown["mlflow_url"]["value"] == "http://127.0.0.1:5000"
    assert [shown[key]["is_set"] for key in ("lake_uri", "home")] == [False, True]


def test_settings_show_no_password(tmp_path: Path) -> None:
    (tmp_path / "evensong.yaml").write_text("mlflow_tracking_uri: postgresql://me:secret@db/mlflow\n")
    done = evensong(tmp_path, "settings", "--json")
    assert "secret" not in done.stdout
    assert "postgresql://me:***@db/mlflow" in done.stdout


def test_features_are_listed_shown_and_compared(tmp_path: Path) -> None:
    listed = evensong(tmp_path, "features", "list", "--json").stdout
    (tmp_path / "before.json").write_text(listed)
    shown = json.loads(evensong(tmp_path, "features", "show", "user_history.recent_item_ids", "--json").stdout)
    assert shown["entity"] == "user_id"
    assert shown in json.loads(listed)["features"]
    assert json.loads(evensong(tmp_path, "features", "diff", "before.json", "--json").stdout) == {
        "added": [],
        "removed": [],
        "changed": [],
    }
    changed = listed.replace(shown["version"], "another")
    (tmp_path / "before.json").write_text(changed)
    difference = json.loads(evensong(tmp_path, "features", "diff", "before.json", "--json").stdout)
    assert "user_history.recent_item_ids" in [change["name"] for change in difference["changed"]]
    refused = evensong(tmp_path, "features", "diff", "nowhere.json")
    assert refused.returncode == 2
    assert "nowhere.json" in refused.stderr
    (tmp_path / "other.json").write_text('{"a": 1}')
    refused = evensong(tmp_path, "features", "diff", "other.json")
    assert (refused.returncode, "found no 'features'; write the file with it" in said(refused)) == (2, True)


def test_a_columns_file_is_checked_before_a_night(tmp_path: Path) -> None:
    (tmp_path / "e.csv").write_text("who,what,when,brand\nann,tea,2026-01-02,oak\nbob,mug,2026-01-03,elm\n")
    mapping = ("--user", "who", "--item", "what", "--time", "when", "--item-attributes", "brand")
    (tmp_path / "c.yaml").write_text("items: [{kind: categorical, name: brand, source: attributes.brand}]\n")
    early = evensong(tmp_path, "features", "check", "c.yaml")
    assert (early.returncode, "`evensong import`, then check again" in " ".join(early.stdout.split())) == (0, True)
    assert evensong(tmp_path, "import", "events", "e.csv", *mapping).returncode == 0
    found = json.loads(evensong(tmp_path, "features", "check", "c.yaml", "--json").stdout)
    assert found["rows"] == {"users": 2, "items": 2}
    assert found["declared"]["columns of items"] == 1
    two_mistakes = (
        "items: [{kind: numeric, name: a, source: attributes.aa}]\n"
        "statistics: [{name: n, entity: user, kind: window, window_days: 7, event_types: [purchse]}]"
    )
    for wrong, expected in (
        ("items: [{kind: categorical, name: brand, source: attributes.bran}]", "did you mean brand?"),
        ("items: [{kind: numeric, name: brand, source: attributes.brand}]", "found 'oak' and the like in 2 of 2"),
        ("items: [{kind: text, name: title, encoder: /no/where}]", "items: encoder: /no/where: expected the folder"),
        ("items: [{kind: text, name: title, encoder: tfid}]", "tfid: no such encoder; did you mean tfidf?"),
        (
            "items: [{kind: numeric, name: a, source: attributes.aa}, {kind: numeric, name: b, source: attributes.bb}]",
            "attributes has bb",
        ),
        (
            two_mistakes,
            "did you mean purchase? c.yaml: items: column a: no row of attributes has aa",
        ),
        ("crosses: [{name: x, columns: [users.towm, items.category_1], num_buckets: 9}]", "users.towm is neither a"),
        (
            "statistics: [{name: n, entity: user, kind: window, window_days: 7, event_types: [purchse]}]",
            "are not let through (types of your own stand in EVENSONG_VALIDATION__EVENT_TYPES); did you mean purchase?",
        ),
    ):
        (tmp_path / "c.yaml").write_text(wrong)
        refused = evensong(tmp_path, "features", "check", "c.yaml")
        assert (refused.returncode, expected in said(refused)) == (2, True), refused.stderr
    assert "found none; name it here or in EVENSONG_FEATURES__COLUMNS_PATH" in said(
        evensong(tmp_path, "features", "check")
    )
    assert "(features.columns_path), found none" in said(evensong(tmp_path, "features", "check", "absent.yaml"))


def said(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stderr.split())


def test_a_title_in_brackets_is_shown_and_a_list_has_short_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    cli._rows("films", [{"title": "[rec] 2", "shares": [1 / 3, 2 / 3]}], ["title", "shares"])
    said = capsys.readouterr().out
    assert "[rec] 2" in said
    assert "0.3333, 0.6667" in said


def test_an_empty_registry_and_a_missing_dictionary_say_what_to_do(tmp_path: Path) -> None:
    listed = evensong(tmp_path, "registry", "list")
    assert (listed.returncode, "`evensong nightly --as-of DATE` registers one" in listed.stdout) == (0, True)
    compared = evensong(tmp_path, "features", "diff", "1", "3")
    assert compared.returncode == 2
    assert "`evensong registry diff V1 V2`" in " ".join(compared.stderr.split())
