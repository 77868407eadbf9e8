"""The settings: where values come from, and that a typo is refused."""

from pathlib import Path

import pytest

from evensong.errors import ConfigurationError
from evensong.settings import load_settings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_arguments_win_over_environment_and_environment_over_file(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "evensong.yaml").write_text("serving: {port: 1111, max_k: 50, default_k: 5}\n")
    monkeypatch.setenv("EVENSONG_SERVING__PORT", "2222")
    monkeypatch.setenv("EVENSONG_SERVING__MAX_K", "60")
    serving = load_settings(serving={"port": 3333}).serving
    assert (serving.port, serving.max_k, serving.default_k) == (3333, 60, 5)


def test_unknown_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENSONG_SERVNG__PORT", "1")
    with pytest.raises(ConfigurationError, match="EVENSONG_SERVNG__PORT: no such setting"):
        load_settings()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("servin: {port: 1}", r"servin: no such setting \(did you mean serving\?\)"),
        ("serving: {prt: 1}", r"serving\.prt: no such setting \(did you mean port\?\)"),
        ("serving: {port: soon}", "soon"),
        ("a: [", "settings"),
    ],
)
def test_unknown_or_unreadable_file_content_is_refused(empty_folder: Path, text: str, message: str) -> None:
    (empty_folder / "evensong.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_settings()


def test_missing_named_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENSONG_CONFIG", "nowhere.yaml")
    with pytest.raises(ConfigurationError, match=r"nowhere\.yaml"):
        load_settings()


def test_an_empty_variable_names_no_columns_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVENSONG_FEATURES__COLUMNS_PATH", "")
    assert load_settings().features.columns_path is None


def test_places_are_absolute_and_below_home(empty_folder: Path) -> None:
    settings = load_settings(home=Path("state"))
    assert settings.lake == str(empty_folder / "state" / "lake")
    assert settings.tracking.startswith(f"sqlite:///{empty_folder}")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("lake_uri", "gs://bucket/lake", "lake_uri: gs:// is not supported; expected a path or s3://"),
        ("artifacts_uri", "https://host/x", "artifacts_uri: https:// is not supported"),
        ("lake_uri", "s3://", "found no bucket"),
        ("online_store_uri", "mongodb://ann:secret@host/0", "expected a path or redis://"),
        ("feast_registry_uri", "redis://host/0", "expected a path or postgresql://"),
    ],
)
def test_a_place_of_an_unknown_scheme_is_refused(place: str, value: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as error:
        load_settings(**{place: value})
    assert "secret" not in str(error.value)


def test_a_place_may_be_a_path_a_file_uri_or_its_own_scheme(empty_folder: Path) -> None:
    assert load_settings(lake_uri="file:///my%20shop/lake").lake == "/my shop/lake"
    assert load_settings(lake_uri="lake").lake == str(empty_folder / "lake"), "the same in every process"
    assert load_settings(lake_uri="s3://bucket/lake").lake == "s3://bucket/lake"
    assert load_settings(lake_uri="").lake == str(empty_folder / "var" / "lake")
    registry = "postgresql+psycopg2://ann@host/feast"
    assert load_settings(feast_registry_uri=registry).feast_registry == registry
