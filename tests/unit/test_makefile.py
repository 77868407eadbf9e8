"""The Makefile: packages come from where pip would get them, and no address of theirs is written down."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TARGETS = {"install": "pip install", "lock": "pip compile"}
#: Notes its arguments and what it was told of indexes, and resolves nothing.
UV = """#!/bin/sh
{ echo "uv $*"; env | grep ^UV_; } >> told.txt
touch requirements.lock.new
"""
#: The real one, but for what would reach for the network.
PYTHON = f"""#!/bin/sh
case "$*" in *"pip install"*) exit 0;; esac
exec {sys.executable} "$@"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and an environment whose uv only takes notes."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name, content in (("uv", UV), ("python", PYTHON)):
        program = tmp_path / ".venv" / "bin" / name
        program.write_text(content)
        program.chmod(0o755)
    return tmp_path


def make(checkout: Path, target: str, pip_configuration: str = "", **variables: str) -> str:
    """What uv was told by this target."""
    configuration = checkout / "pip.conf"
    configuration.write_text(pip_configuration)
    environment = {name: os.environ[name] for name in ("PATH", "HOME")} | {"PIP_CONFIG_FILE": str(configuration)}
    environment |= {"PYTHON": sys.executable} | variables
    subprocess.run(["make", target], cwd=checkout, env=environment, check=True, capture_output=True)
    return (checkout / "told.txt").read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_uv_takes_packages_from_where_pip_does(checkout: Path, target: str) -> None:
    configuration = """[global]
index-url = https://user:hidden@index.example/simple
extra-index-url =
    https://one.example/simple
    https://two.example/simple
find-links = /wheels /more
"""
    told = make(checkout, target, configuration)
    assert TARGETS[target] in told
    lines = told.splitlines()
    assert "UV_DEFAULT_INDEX=https://user:hidden@index.example/simple" in lines
    assert "UV_INDEX=https://one.example/simple https://two.example/simple" in lines
    assert "UV_INDEX_STRATEGY=unsafe-best-match" in lines
    assert "UV_FIND_LINKS=/wheels,/more" in lines
    assert "hidden" not in (checkout / "requirements.lock").read_text()


@pytest.mark.parametrize("target", TARGETS)
def test_variables_win_over_pips_files_and_uvs_own_over_both(checkout: Path, target: str) -> None:
    configuration = (
        "[global]\nindex-url = https://file.example/simple\nextra-index-url = https://extra.example/simple\n"
    )
    told = make(
        checkout,
        target,
        configuration,
        PIP_INDEX_URL="https://variable.example/simple",
        UV_INDEX="https://uv.example/simple",
    )
    assert "UV_DEFAULT_INDEX=https://variable.example/simple" in told.splitlines()
    assert "UV_INDEX=https://uv.example/simple" in told.splitlines()


def test_without_a_word_from_pip_uv_hears_none(checkout: Path) -> None:
    # which keeps pip from reading any file
    assert "UV_" not in make(checkout, "install", PIP_CONFIG_FILE=os.devnull)


def test_a_person_sees_what_is_installed_and_a_log_does_not(checkout: Path) -> None:
    assert "--quiet" not in make(checkout, "install")
    (checkout / ".venv" / ".installed").unlink()
    (checkout / "told.txt").unlink()
    assert "--quiet" in make(checkout, "install", CI="true")


def test_an_environment_that_a_kill_left_half_made_is_made_anew(checkout: Path) -> None:
    half, whole = checkout / ".venv", checkout / "whole"
    half.rename(whole)
    (half / "bin").mkdir(parents=True)
    (half / "bin" / "python").symlink_to(sys._base_executable)  # type: ignore[attr-defined]  # and no pyvenv.cfg
    python = checkout / "python"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *"-m venv"*) exec cp -r {whole} {half};; esac\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    assert "pip install" in make(checkout, "install", PYTHON=str(python))
    assert not (half / "bin" / "python").is_symlink()
