"""What the tests of a DAG ask of it, in a process of its own: parsing must import nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: Imports a DAG as Airflow does, and prints what the tests ask about.
PROBE = """
import importlib.util, json, sys, time
import airflow.sdk
sys.path.insert(0, "plugins")
before, start = set(sys.modules), time.perf_counter()
spec = importlib.util.spec_from_file_location("probed", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
seconds = time.perf_counter() - start
new = sorted({{name.split(".")[0] for name in set(sys.modules) - before}})
dag = getattr(module, sys.argv[2])()
print(json.dumps(dict(seconds=seconds, new_modules=new, doc_md=dag.doc_md, **{questions})))
"""

Probe = Callable[[str, str, str], dict[str, Any]]


@pytest.fixture(scope="session")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("airflow")


@pytest.fixture(scope="session")
def probe(airflow_home: Path) -> Probe:
    """Asks `questions`, a dict of expressions about `dag`, of the DAG that `function` in dags/`file` makes."""

    def ask(file: str, function: str, questions: str) -> dict[str, Any]:
        environment = os.environ | {"AIRFLOW_HOME": str(airflow_home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        command = [sys.executable, "-c", PROBE.format(questions=questions), f"dags/{file}", function]
        words = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert words.returncode == 0, words.stderr
        found: dict[str, Any] = json.loads(words.stdout.splitlines()[-1])
        return found

    return ask
