"""The command line: JSON on stdout, notes on stderr, and exit codes that a script can trust."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from evensong import cli


def evensong(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "evensong.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=home,
        env={"PATH": "/usr/bin:/bin", "EVENSONG_HOME": str(home / "state"), "HOME": str(home)},
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["import", "movielens", "nowhere"], "nowhere"),
        (["import", "remove", "nothing"], "no source 'nothing'"),
        (["import", "events", "https://x/e.csv", "--user", "u", "--item", "i", "--time", "t"], "https:// is not read"),
        (["simulate", "--start", "nonsense"], "start: expected a day such as 2026-01-15, got 'nonsense'"),
        (["nightly", "--as-of", "soon"], "as_of"),
        (["nightly", "--as-of", "2026-13-45"], "as_of: expected a day such as 2026-01-15"),
        (["nightly", "--as-of", "2026-01-01", "--train-from", "nothing"], "train-from"),
        (["frobnicate"], "frobnicate"),
        (["registry", "show", "12"], "12"),
        (["recommend", "somebody"], "evensong nightly"),
    ],
)
def test_wrong_use_exits_with_2_and_says_what_came(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = evensong(tmp_path, *arguments)
    assert done.returncode == 2, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_an_error_is_json_too(tmp_path: Path) -> None:
    done = evensong(tmp_path, "import", "movielens", "nowhere", "--json")
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == done.returncode == 2
    assert "nowhere" in answer["error"]


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
    findings = json.loads(evensong(tmp_path, "doctor", "--json").stdout)
    assert {finding["piece"] for finding in findings} >= {"python", "home", "lake", "online store", "registry"}
    assert all(finding["message"] for finding in findings)


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


def test_a_title_in_brackets_is_shown_and_a_list_has_short_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    cli._rows("films", [{"title": "[rec] 2", "shares": [1 / 3, 2 / 3]}], ["title", "shares"])
    said = capsys.readouterr().out
    assert "[rec] 2" in said
    assert "0.3333, 0.6667" in said
