"""The task that waits for a person: asked in Airflow, answered there or anywhere else, holding no worker meanwhile."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any, NoReturn

from airflow.providers.standard.operators.hitl import HITLOperator
from airflow.providers.standard.triggers.hitl import HITLTrigger
from airflow.sdk import Param
from airflow.sdk.exceptions import AirflowRuntimeError, TaskDeferred
from airflow.sdk.execution_time.hitl import update_hitl_detail_response, upsert_hitl_detail
from airflow.triggers.base import TriggerEvent
from asgiref.sync import sync_to_async
from evensong_airflow import leave_turn, page, person, refusals, show

log = logging.getLogger(__name__)

APPROVE, REJECT = "Approve", "Reject"
OPTIONS = {"approved": APPROVE, "rejected": REJECT}
#: How a request is closed whose night was judged anew: Airflow keeps its words, and they are about another decision.
JUDGED_ANEW = "Judged anew: answer on the page Promotions"
LOOK_SECONDS = 5.0

COMMENT = Param(
    None,
    type=["null", "string"],
    maxLength=1000,
    title="Comment",
    description="Why; it goes into the ledger, or onto the version.",
)


class ReviewOperator(HITLOperator):
    """Asks whether the version may become champion, and waits until one of the places has answered, or the deadline.

    `assigned_users` stays empty: whoever may edit the DAG may answer, in the demo without passwords as well.
    """

    template_fields = ("version",)

    def __init__(self, *, version: str, **kwargs: Any) -> None:
        # Airflow hands the DAG's params in as well; they belong to its form and not to this one
        kwargs |= {"params": {"comment": COMMENT}}
        super().__init__(subject="Promote?", options=[APPROVE, REJECT], **kwargs)
        self.version = version

    def execute(self, context: Any) -> dict[str, Any] | None:
        """Ask, let the next night begin, and wait; a version that nobody asked about, or has an answer, waits no more.

        A second try finds the request of the first, and the answer to it if its worker was killed with it. Where the
        night was judged anew in between, that request is closed, and the page, a tag or a command ends the wait.

        Raises:
            TaskDeferred: it waits.
        """
        from evensong.pipelines import review
        from evensong.settings import load_settings

        with refusals():
            settings = load_settings()
            if not review.is_asked(settings, self.version):
                log.info("version %s waits for no review", self.version)
                return None
            if review.answered(settings, self.version):
                return self._done()
            is_current = review.is_in_airflow(settings, self.version)
        leave_turn(settings)
        if context["ti"].try_number > 1:
            self._wait(context, was_asked=True, is_current=is_current)
        self._ask(context)
        return None

    def execute_complete(self, context: Any, event: dict[str, Any]) -> dict[str, Any]:
        """Take the answer that was given in Airflow, or find the one that was given elsewhere, and do what it says.

        Both answers end the task green: a person's no is a result.
        """
        from evensong.pipelines import review
        from evensong.settings import load_settings

        if "ask" in event:
            self._ask(context)
        if "elsewhere" in event:
            return self._done()
        said = super().execute_complete(context, event)
        outcome = "approved" if said["chosen_options"] == [APPROVE] else "rejected"
        user = said["responded_by_user"] or {}
        comment = str((said["params_input"] or {}).get("comment") or "").strip() or f"{outcome} in Airflow"
        with refusals():
            given = review.answer(
                load_settings(), self.version, outcome, by=person(user.get("name") or user.get("id")), comment=comment
            )
        return self._tell(given)

    def _ask(self, context: Any) -> NoReturn:
        from evensong.pipelines import review
        from evensong.settings import load_settings

        with refusals():
            settings = load_settings()
            asked = review.question(settings, self.version, page("dossier", self.version))
            review.put_in_airflow(settings, self.version)
        log.info("%s\n\n%s", asked.subject, asked.body)
        upsert_hitl_detail(
            ti_id=context["ti"].id,
            options=self.options,
            subject=asked.subject,
            body=asked.body,
            params=self.serialized_params,
        )
        self._wait(context, was_asked=False, is_current=True)

    def _wait(self, context: Any, *, was_asked: bool, is_current: bool) -> NoReturn:
        trigger = ReviewTrigger(
            version=self.version,
            was_asked=was_asked,
            is_current=is_current,
            ti_id=context["ti"].id,
            options=self.options,
            params=self.serialized_params,
            timeout_datetime=None,
            poke_interval=LOOK_SECONDS,
        )
        raise TaskDeferred(trigger=trigger, method_name="execute_complete")

    def _done(self) -> dict[str, Any]:
        from evensong.pipelines import review
        from evensong.settings import load_settings

        with refusals():
            settings = load_settings()
            given = review.answered(settings, self.version)
            review.carry_out(settings, self.version)
        return self._tell(given)

    def _tell(self, given: Any) -> dict[str, Any]:
        show("Answer", f"{given.outcome} by {given.by} ({given.via}): {given.comment}")
        answer: dict[str, Any] = given.model_dump(mode="json")
        return answer


class ReviewTrigger(HITLTrigger):
    """Fires when somebody has answered in Airflow, or when the registry has an answer from elsewhere.

    `was_asked`: another try may have asked before; if none has, it fires as well, and the task asks. Without
    `is_current` what it asked is about another decision: no answer to it counts.
    """

    def __init__(self, *, version: str, was_asked: bool, is_current: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.version = version
        self.was_asked = was_asked
        self.is_current = is_current

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """The trigger as Airflow keeps it."""
        _, arguments = super().serialize()
        ours = {"version": self.version, "was_asked": self.was_asked, "is_current": self.is_current}
        return f"{__name__.rpartition('.')[2]}.{type(self).__name__}", arguments | ours

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Look at both until one has an answer."""
        is_closed = False
        while True:
            event = None if is_closed else await self._in_airflow()
            if event and (self.is_current or "ask" in event.payload):
                yield event
                return
            if not self.is_current and not is_closed:
                is_closed = event is not None or await self._close(JUDGED_ANEW)
            if outcome := await asyncio.to_thread(_elsewhere, self.version):
                await self._close(OPTIONS[outcome])
                yield TriggerEvent({"elsewhere": outcome})
                return
            await asyncio.sleep(self.poke_interval)

    async def _in_airflow(self) -> TriggerEvent | None:
        try:
            found: TriggerEvent | None = await self._handle_response()
        except AirflowRuntimeError as error:
            if self.was_asked and (error.error.detail or {}).get("status_code") == 404:
                return TriggerEvent({"ask": True})
            log.warning("Airflow does not say whether somebody answered: %s", error)
            return None
        return found

    async def _close(self, option: str) -> bool:
        """Show the answer where Airflow asked, so that nobody answers what is decided; whether that was possible."""
        try:
            await sync_to_async(update_hitl_detail_response)(ti_id=self.ti_id, chosen_options=[option], params_input={})
        except Exception as error:  # somebody answered in Airflow at this very moment: the registry's answer counts
            log.info("the request in Airflow could not be closed: %s", error)
            return False
        return True


def _elsewhere(version: str) -> str | None:
    """The outcome that a tag, a command, the page, a later night or the deadline has set; none while nobody has."""
    from evensong.errors import EvensongError
    from evensong.pipelines import review
    from evensong.settings import load_settings

    try:
        given = review.answered(load_settings(), version)
    except EvensongError as error:  # the registry is away: the wait goes on
        log.warning("version %s: %s", version, error)
        return None
    return given.outcome if given else None
