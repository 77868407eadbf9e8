"""Locks among machines that share a registry: PostgreSQL's own, else an object on S3; one machine alone needs none."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from urllib.parse import urlsplit

from evensong.data import storage
from evensong.errors import BusyError, RegistryError
from evensong.registry import tracking
from evensong.settings import Settings

WAIT_SECONDS = 10.0
#: No move takes nearly as long; a machine that died while it moved the champion holds up the others for this time.
LEASE_SECONDS = 60.0
LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@contextlib.contextmanager
def held(settings: Settings, name: str) -> Iterator[None]:
    """Hold a lock by name in this home, and among all machines that share the registry.

    Raises:
        BusyError: somebody else holds it for more than ten seconds.
        RegistryError: other machines may share the registry, and there is nothing to lock among them.
    """
    with tracking.locked(settings, name, wait_seconds=WAIT_SECONDS), _among_machines(settings, name):
        yield


@contextlib.contextmanager
def _among_machines(settings: Settings, name: str) -> Iterator[None]:
    if settings.tracking.startswith("postgresql"):
        with _in_postgresql(settings, name):
            yield
    elif settings.tracking.startswith("sqlite"):
        yield
    elif storage.is_remote(settings.model_artifacts):
        place = storage.join(settings.model_artifacts, "locks", settings.registry.model_name, name)
        with storage.lease(place, seconds=LEASE_SECONDS, wait_seconds=WAIT_SECONDS):
            yield
    elif urlsplit(settings.tracking).hostname in LOOPBACK:
        yield
    else:
        raise RegistryError(
            f"{tracking.place_of(settings)}: other machines may share this registry, and with artifacts in a folder "
            "nothing keeps two of them from moving the champion at once; set mlflow_artifacts_uri to a place on S3 "
            "that all of them share, or mlflow_tracking_uri to its PostgreSQL database"
        )


@contextlib.contextmanager
def _in_postgresql(settings: Settings, name: str) -> Iterator[None]:
    """It ends with the connection."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(settings.tracking, poolclass=sqlalchemy.pool.NullPool)
    named = hashlib.sha256(f"evensong {settings.registry.model_name} {name}".encode()).digest()
    key = int.from_bytes(named[:7], "big")
    with engine.connect() as connection:
        connection.execute(sqlalchemy.text(f"SET lock_timeout = '{WAIT_SECONDS:g}s'"))
        try:
            connection.execute(sqlalchemy.text("SELECT pg_advisory_lock(:key)"), {"key": key})
        except sqlalchemy.exc.OperationalError as error:
            raise BusyError(f"{name}: another machine holds it; wait until it ends and try again") from error
        yield
