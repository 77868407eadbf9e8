"""What the documents say about commands, settings and files is so."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
import yaml

from evensong import cli
from evensong.evaluation.policy import NonInferiorityRule, PromotionPolicy, load_policy

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
        if first in {"import", "quarantine", "registry", "features"} and len(line.split()) > 1:
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

    known = {"--" + name.replace("_", "-") for name in EventMapping.model_fields}
    known |= {"--name", "--as-of", "--no-header", "--reason"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / "docs/guides/bring-your-own-data.md").read_text()))
    assert named <= known
    assert {"--time-zone", "--decimal", "--keep-order"} <= named


#: Defaults of docs/guides/promotion.md that are said in words.
SAID = {
    "fixed": 20261122,
    "popularity and item-kNN": ("popularity", "item_knn"),
    "recall and NDCG": ("recall_at_20", "ndcg_at_10"),
    "new users, new items, long tail": ("new_users", "new_items", "long_tail"),
    "validation, leak_canary, features_served, bundle": ("validation", "leak_canary", "features_served", "bundle"),
    "NDCG: margin 0.01 at 0.95": {"ndcg_at_10": NonInferiorityRule(margin=0.01, confidence=0.95)},
    "see the file": load_policy((ROOT / "mlflow" / "promotion_policy.yaml").read_text()).guardrails,
}
#: Keys that the table writes with a placeholder, and where their default stands.
PLACEHOLDERS = {
    "non_inferior.<metric>": ["non_inferior"],
    "guardrails.<figure>": ["guardrails"],
    "….when_inconclusive": ["slices.when_inconclusive", "non_inferior.ndcg_at_10.when_inconclusive"],
}


def _documented_defaults() -> list[tuple[str, str]]:
    """Key and default of each row of the policy's table, as they are written; a row may hold several keys."""
    rows = re.findall(r"(?m)^\| (`[^|]+) \| ([^|]+) \| [^|]+ \|$", (ROOT / "docs/guides/promotion.md").read_text())
    found: list[tuple[str, str]] = []
    for keys_written, written in rows[: [row[0] for row in rows].index("`review.deadline_hours`, `.default`") + 1]:
        keys = re.findall(r"`([^`]+)`", keys_written)
        section = keys[0].rpartition(".")[0]
        keys = [section + key if key.startswith(".") else key for key in keys]
        separator = "; " if ";" in written else ", "
        values = written.split(separator) if len(keys) > 1 else [written]
        assert len(keys) == len(values), f"{keys_written}: {written}"
        found += zip(keys, values, strict=True)
    return found


@pytest.mark.parametrize(("key", "written"), _documented_defaults())
def test_every_default_of_the_policy_is_as_documented(key: str, written: str) -> None:
    expected = SAID[written] if written in SAID else yaml.safe_load(written.strip("`").replace(",", ""))
    for path in PLACEHOLDERS.get(key, [key]):
        value: object = PromotionPolicy()
        for part in path.split("."):
            value = value[part] if isinstance(value, dict) else getattr(value, part)
        assert value == expected, f"docs/guides/promotion.md gives {path} as {written}"


def test_every_key_of_the_policy_is_documented() -> None:
    documented = {key for key, _ in _documented_defaults()}
    policy = PromotionPolicy()
    known = {"mode", *PLACEHOLDERS}
    for name in type(policy).model_fields.keys() - {"mode", "non_inferior", "guardrails"}:
        known |= {f"{name}.{key}" for key in type(getattr(policy, name)).model_fields}
    assert documented == known - {"slices.when_inconclusive"}
