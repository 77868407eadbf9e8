"""The retention rule, at work: what of old versions may go, and, when asked for, gone."""

from __future__ import annotations

from typing import Any

from evensong.pipelines.night import hold_home
from evensong.registry import commands
from evensong.settings import Settings


def run(settings: Settings, *, remove: bool) -> list[dict[str, Any]]:
    """What the rule keeps and lets go, newest first; with `remove` what may go is removed, while no night is at work.

    Raises:
        BusyError: a night runs in this home, or the champion is being moved; nothing was removed.
    """
    if not remove:
        return commands.collect(settings)
    # A night that is made again works in the folder of its first run.
    with hold_home(settings):
        return commands.collect(settings, dry_run=False)


def summary(plan: list[dict[str, Any]], *, remove: bool) -> str:
    """The plan in one line."""
    going = [one["version"] for one in plan if one["action"] == "collect"]
    done = "collected" if remove else "would collect"
    return f"{done} {len(going)} of {len(plan)} bundles" + (f": version {', '.join(going)}" if going else "")
