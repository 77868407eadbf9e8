"""What every test may use."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data sets, for tests that want them; they lie beside a checkout, never in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: {SHARED_DATA} is not there")
    return SHARED_DATA


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated MLflow database, made once: migrating takes seconds."""
    from evensong.registry import tracking
    from evensong.settings import Settings

    home = tmp_path_factory.mktemp("empty")
    tracking.client(Settings(home=home))
    return home / "mlflow" / "mlflow.db"


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_offline() -> None:
    """No telemetry, no thread storms: tests share two cores."""
    import os

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("FEAST_USAGE", "False")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    for variable in [name for name in os.environ if name.startswith("EVENSONG_")]:
        del os.environ[variable]
