"""Makes a place ready before its components start: secrets, databases, buckets. `python -m evensong.launch.prepare`.

On a laptop there are only the SQLite files of Airflow and MLflow to make; on a server the PostgreSQL databases and the
S3 buckets that the settings name are made first, where they are missing. Running it again changes nothing.
"""

from __future__ import annotations

import configparser
import io
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

from evensong.errors import EvensongError, LaunchError, StorageError
from evensong.launch import components, secrets
from evensong.settings import Settings, load_settings

log = logging.getLogger(__name__)


def prepare(settings: Settings) -> None:
    """Everything that the components expect to find.

    Raises:
        LaunchError: a database cannot be made or migrated.
        StorageError: a bucket cannot be made.
    """
    Path(settings.place("airflow")).mkdir(parents=True, exist_ok=True)
    Path(settings.place("mlflow")).mkdir(parents=True, exist_ok=True)
    secrets.ensure_password(settings)
    write_airflow_config(settings)
    for url in _database_urls(settings):
        create_database(url)
    for uri in (settings.lake, settings.artifacts, settings.model_artifacts):
        if uri.startswith("s3://"):
            create_bucket(uri)
    make_tracking_store(settings)
    migrate(settings)


def make_tracking_store(settings: Settings) -> None:
    """Make MLflow's SQLite database where there is none: its server and the service would each make one at once."""
    path = Path(settings.tracking.removeprefix("sqlite:///"))
    if settings.tracking.startswith("sqlite:///") and not path.exists():
        from evensong.registry import tracking

        tracking.client(settings)


def migrate(settings: Settings) -> None:
    """Bring Airflow's metadata database to the installed version.

    Raises:
        LaunchError: with what Airflow wrote.
    """
    done = Path(settings.place("airflow", f".migrated-{components.airflow_version()}"))
    # a file of ours tells about a database of ours only
    ours = settings.airflow.database_url is None
    if ours and done.exists() and Path(settings.place("airflow", "airflow.db")).exists():
        return
    command = components.migrate_command()
    result = subprocess.run(
        command,
        executable=components.executable(command[0]),
        env=components.common_variables(settings),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    if result.returncode:
        raise LaunchError(
            f"{' '.join(command)} ended with {result.returncode}:\n{result.stdout[-2000:]}{result.stderr[-2000:]}"
        )
    done.touch()


def write_airflow_config(settings: Settings) -> None:
    """The components' variables as `airflow.cfg`: `AIRFLOW_HOME=…/airflow airflow …` in a shell is this Airflow."""
    variables = components.airflow_variables(settings) | secrets.airflow_secrets(settings)
    config = configparser.ConfigParser(interpolation=None)
    for variable, value in sorted(variables.items()):
        prefix, _, rest = variable.partition("__")
        section, _, key = rest.lower().partition("__")
        if prefix == "AIRFLOW":
            if not config.has_section(section):
                config.add_section(section)
            # Airflow interpolates what stands in its file
            config.set(section, key, value.replace("%", "%%"))
    text = io.StringIO()
    text.write("# Written by `evensong up`; change the settings instead (docs/guides/settings.md).\n")
    config.write(text)
    secrets.write_private(Path(settings.place("airflow", "airflow.cfg")), text.getvalue())


def create_database(url: str) -> None:
    """Make the database that a PostgreSQL URL names, unless it is there.

    Raises:
        LaunchError: the server cannot be reached, or refuses.
    """
    import psycopg
    from psycopg import sql
    from sqlalchemy.engine import make_url

    target = make_url(url)
    if not target.database:
        raise LaunchError(f"{target.render_as_string()}: expected the name of a database after the host, found none")
    # a socket's folder may stand in the query, as in postgresql:///name?host=/run/postgresql
    options: dict[str, Any] = {"host": target.host, "port": target.port, "user": target.username}
    options |= {"password": target.password, "dbname": "postgres"} | dict(target.query)
    server = psycopg.conninfo.make_conninfo(**{name: value for name, value in options.items() if value is not None})
    try:
        with psycopg.connect(server, autocommit=True) as connection:
            known = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [target.database]).fetchone()
            if known is None:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(target.database)))
                log.info("made the database %s", target.database)
    except psycopg.errors.DuplicateDatabase:
        return
    except psycopg.Error as error:
        # rendered without its password
        raise LaunchError(f"{target.render_as_string()}: {error}") from error


def create_bucket(uri: str) -> None:
    """Make the bucket of an `s3://` URI, unless it is there.

    Raises:
        StorageError: the store cannot be reached, or refuses.
    """
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    bucket = uri.removeprefix("s3://").partition("/")[0]
    client: Any = boto3.client("s3")
    try:
        if bucket not in {known["Name"] for known in client.list_buckets()["Buckets"]}:
            region = client.meta.region_name
            where = {} if region in (None, "us-east-1") else {"LocationConstraint": region}
            client.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": where} if where else {}))
            log.info("made the bucket %s", bucket)
    except (BotoCoreError, ClientError) as error:
        raise StorageError(f"the bucket {bucket} of {uri} cannot be made: {error}; make it by hand") from error


def main() -> int:
    """Prepare what the environment's settings name; the exit code says whether it is ready."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    try:
        prepare(load_settings())
    except EvensongError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


def _database_urls(settings: Settings) -> list[str]:
    urls = [settings.airflow.database_url, settings.tracking, settings.feast_registry]
    return sorted({url for url in urls if url and url.startswith("postgresql")})


if __name__ == "__main__":
    sys.exit(main())
