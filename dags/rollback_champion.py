"""Returns to the previous champion, whole bundle; the service swaps to it while it serves.

The version that is left is blocked: no night promotes it again without a person's word. It touches nothing but the
registry, so it waits for no night that is being trained.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import Param, dag, get_current_context, task
from evensong_airflow import person, refusals, show, tell_failure

PARAMS = {
    "reason": Param(
        type="string",
        minLength=3,
        maxLength=1000,
        title="Reason",
        description="Why the champion has to go; it stands in the ledger, and on the version that is left.",
    ),
    "expected": Param(
        None,
        type=["null", "string"],
        pattern="^[0-9]+$",
        title="Expected champion",
        description="The version that you want to leave. The rollback is refused if another one is champion by then. "
        "Empty: whichever is champion when the run starts.",
    ),
}


@dag(
    schedule=None,
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params=PARAMS,
    tags=["evensong", "promotion"],
    doc_md=__doc__,
    default_args={
        "owner": "evensong",
        "retries": 3,
        "retry_delay": timedelta(seconds=5),
        "execution_timeout": timedelta(minutes=10),
        "on_failure_callback": tell_failure,
    },
)
def rollback_champion() -> None:
    @task
    def look() -> str:
        """Which version is to be left: so that the rollback, however often it is tried, is made once."""
        from evensong.registry import commands
        from evensong.settings import load_settings

        expected = get_current_context()["params"]["expected"]
        with refusals():
            return str(expected or commands.show(load_settings(), "champion")["version"])

    @task
    def roll_back(leave: str) -> dict[str, Any]:
        """Move the alias back."""
        from evensong.registry import commands
        from evensong.settings import load_settings

        context = get_current_context()
        who = person(getattr(context["dag_run"], "triggering_user_name", None))
        with refusals():
            moved = commands.rollback(load_settings(), reason=context["params"]["reason"], actor=who, expected=leave)
        show("Champion", f"{moved['champion']}, back from {leave}")
        return moved

    roll_back(look())


rollback_champion()
