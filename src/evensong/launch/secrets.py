"""Keeps the secrets of one home: made at random once, readable by their owner alone, never in code or logs."""

from __future__ import annotations

import base64
import json
import os
import secrets as randomness
from pathlib import Path

from evensong.settings import Settings


def airflow_secrets(settings: Settings) -> dict[str, str]:
    """Airflow's secrets as variables; those that the environment already carries win."""
    names = ("AIRFLOW__CORE__FERNET_KEY", "AIRFLOW__API__SECRET_KEY", "AIRFLOW__API_AUTH__JWT_SECRET")
    path = Path(settings.place("airflow", "secrets.json"))
    kept = _read(path)
    missing = {name: _fernet_key() if "FERNET" in name else randomness.token_hex(32) for name in names}
    made = missing | kept
    if made != kept and not all(name in os.environ for name in names):
        _write(path, made)
    values = {name: os.environ.get(name, made[name]) for name in names}
    values["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"] = str(passwords_file(settings))
    return values | {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": settings.airflow_database}


def passwords_file(settings: Settings) -> Path:
    """Where Airflow's simple auth manager reads its users' passwords."""
    return Path(settings.place("airflow", "passwords.json"))


def ensure_password(settings: Settings) -> None:
    """Give `admin` a password: the one of AIRFLOW_ADMIN_PASSWORD, or the one made before, or a new random one."""
    path = passwords_file(settings)
    kept = _read(path)
    admin = os.environ.get("AIRFLOW_ADMIN_PASSWORD") or kept.get("admin") or randomness.token_urlsafe(18)
    if kept.get("admin") != admin:
        _write(path, kept | {"admin": admin})


def admin_password(settings: Settings) -> str:
    """The password of `admin`, for the launcher's own calls."""
    return _read(passwords_file(settings)).get("admin", "")


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    draft.replace(path)


def _fernet_key() -> str:
    return base64.urlsafe_b64encode(randomness.token_bytes(32)).decode()


def _read(path: Path) -> dict[str, str]:
    try:
        content: dict[str, str] = json.loads(path.read_text())
        return content
    except (FileNotFoundError, json.JSONDecodeError):
        return {}


def _write(path: Path, values: dict[str, str]) -> None:
    write_private(path, json.dumps(values) + "\n")
