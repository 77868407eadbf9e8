"""Shows what the retention rule lets go, every week; with **Remove** it goes.

The last champions (`registry.keep_champions`), the newest versions (`registry.keep_versions`), every version with an
alias and every one that waits for a person keep their bundles. Of the others the bundle goes, and what their nights
left in the run's folder; the versions stay, with metrics, decision and dossier. While a night is at work nothing is
removed, and the task tries again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param, dag, get_current_context, task
from evensong_airflow import refusals, show, tell_failure

PARAMS = {
    "remove": Param(
        False,
        type="boolean",
        title="Remove",
        description="Remove what the rule lets go. Off, and on schedule: only say what that would be.",
    ),
}


@dag(
    schedule=CronTriggerTimetable("0 5 * * 1", timezone="UTC", run_immediately=timedelta(0)),
    catchup=False,
    max_active_runs=1,
    is_paused_upon_creation=False,
    params=PARAMS,
    tags=["evensong", "promotion"],
    doc_md=__doc__,
    default_args={
        "owner": "evensong",
        "retries": 6,
        "retry_delay": timedelta(minutes=10),
        "on_failure_callback": tell_failure,
    },
)
def retention() -> None:
    @task
    def collect() -> list[dict[str, Any]]:
        """Ask the rule, and obey it where the form says so."""
        from evensong.pipelines import retention
        from evensong.settings import load_settings

        remove = bool(get_current_context()["params"]["remove"])
        with refusals():
            plan = retention.run(load_settings(), remove=remove)
        show("Retention", retention.summary(plan, remove=remove))
        return plan

    collect()


retention()
