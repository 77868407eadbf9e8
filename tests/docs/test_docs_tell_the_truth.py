"""What the documents say about commands, settings and files is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from evensong import cli

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def _commands(app: typer.Typer, prefix: str = "") -> set[str]:
    names = set()
    for command in app.registered_commands:
        names.add(prefix + (command.name or command.callback.__name__.replace("_", "-")))  # type: ignore[union-attr]
    for group in app.registered_groups:
        names |= {group.name, *_commands(group.typer_instance, f"{group.name} ")}  # type: ignore[arg-type, operator]
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_named_exists(page: Path) -> None:
    known = _commands(cli.app)
    for line in re.findall(r"(?m)^(?:    |`)evensong ([a-z-]+(?: [a-z-]+)?)", page.read_text()):
        first = line.split()[0]
        assert line in known or first in known, f"{page.name} names `evensong {line}`"
        if first in {"import", "registry", "features"} and len(line.split()) > 1:
            assert line in known, f"{page.name} names `evensong {line}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_make_target_named_exists(page: Path) -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    named = set(re.findall(r"(?m)(?:^    |`)make ([a-z-]+)", page.read_text()))
    assert named <= targets


def test_settings_guide_is_current() -> None:
    written = subprocess.run(
        [sys.executable, "-m", "evensong.cli", "settings", "--markdown"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    ).stdout
    assert (ROOT / "docs/guides/settings.md").read_text() == written, "run `make docs`"


def test_every_option_that_the_guide_to_ones_own_data_names_exists() -> None:
    from evensong.data.mapping import EventMapping

    known = {"--" + name.replace("_", "-") for name in EventMapping.model_fields} | {"--name", "--as-of", "--no-header"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs/guides/bring-your-own-data.md").read_text()))
    assert named <= known
    assert {"--time-zone", "--decimal", "--keep-order"} <= named
