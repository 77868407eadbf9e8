"""Retrains the recommender every night, and promotes the new model when the evidence says it is better.

A run has one **as_of**: nothing that became known after it reaches the model. It is the midnight (UTC) at the start of
the run's logical date, for scheduled runs, backfills and a click alike; the form may name any other moment.

A night whose gate says no is a green run: the champion stays. Where the policy asks a person, **review** waits for an
answer: approve or reject it there under *Required Actions*, on the page *Promotions*, by the tag `review` in MLflow, or
with `evensong registry promote|reject`. Meanwhile the next night may begin.

A night whose data is bad is a red one: nothing is trained. Clear a failed task to go on from there; every step gives
the same when it runs again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param, dag, task
from evensong_airflow import StepLink, hand_on, night_of_run, page, record_failure, show, step, tell_failure
from evensong_review import ReviewOperator

from evensong.settings import load_settings

Night = dict[str, Any]
SETTINGS = load_settings().airflow

PARAMS = {
    "as_of": Param(
        None,
        type=["null", "string"],
        format="date-time",
        title="As of",
        description="The cutoff (UTC), the coming midnight at the latest: the run sees what was known then, "
        "and nothing later. Empty: the midnight at the start of the logical date above, which is "
        "the last one unless you change it.",
    ),
    "source": Param(
        "all",
        type="string",
        minLength=1,
        title="Source",
        description="Which registered source to ingest from; all takes every one. "
        "Sources are registered by `evensong import` and `evensong simulate`.",
        examples=["all", "simulator"],
    ),
    "train_from": Param(
        "scratch",
        type="string",
        enum=["scratch", "champion"],
        title="Train from",
        description="Start with random weights, or continue from the champion's.",
        values_display={"scratch": "scratch: random weights", "champion": "champion: continue from its weights"},
    ),
    "refit": Param(
        True,
        type="boolean",
        title="Refit on everything",
        description="After the evaluation, train the same recipe on everything up to as_of; "
        "the bundle holds that model.",
    ),
    "seed": Param(7, type="integer", minimum=0, title="Seed", description="Of every random choice in the run."),
}


@dag(
    # a first start at night waits for the next night, as one by day does; a click does not have to wait
    schedule=CronTriggerTimetable(SETTINGS.schedule, timezone="UTC", run_immediately=timedelta(0)),
    catchup=False,
    # runs that wait for a person, and one that works: they take turns, see evensong_airflow.take_turn
    max_active_runs=16,
    is_paused_upon_creation=False,
    params=PARAMS,
    tags=["evensong", "training"],
    doc_md=__doc__,
    default_args={
        "owner": "evensong",
        "retries": 3,
        "retry_delay": timedelta(seconds=10),
        "retry_exponential_backoff": True,
        "max_retry_delay": timedelta(minutes=5),
        # a task that hangs holds the home, and every night after it waits
        "execution_timeout": timedelta(hours=SETTINGS.task_hours),
        "on_failure_callback": [tell_failure, record_failure],
    },
)
def nightly_retraining() -> None:
    @task
    def plan() -> Night:
        """Which night this is: its as_of, and how to train."""
        return night_of_run().model_dump(mode="json")

    @task
    def ingest(night: Night) -> dict[str, int]:
        """Bring what arrived since the last run into the lake."""
        from evensong.pipelines import ingest

        with step(night, first=True) as (settings, value):
            return ingest.run(settings, value)

    @task
    def validate(night: Night) -> str:
        """Put bad rows into quarantine; stop the night when there are too many."""
        from evensong.pipelines import validate

        with step(night) as (settings, value):
            # before it runs: whoever has to know why it failed needs them most
            show("Data Docs", page("data-docs", value.run_id, "index.html"))
            return validate.run(settings, value)

    @task
    def build_features(night: Night) -> dict[str, int]:
        """Compute the features that changed."""
        from evensong.pipelines import features

        with step(night) as (settings, value):
            return features.build(settings, value)

    @task
    def materialize(night: Night) -> dict[str, int]:
        """Bring the newest features into the online store."""
        from evensong.pipelines import features

        with step(night) as (settings, value):
            return features.materialize(settings, value)

    @task
    def leak_canary(night: Night) -> str:
        """Plant leaks in a copy of the tables; stop the night when the join lets one through or loses a row."""
        from evensong.pipelines import canary

        with step(night) as (settings, value):
            return canary.run(settings, value)

    @task
    def skew(night: Night) -> str:
        """Replay the last served requests through the offline path, and compare every feature and score."""
        from evensong.pipelines import skew

        with step(night) as (settings, value):
            return skew.run(settings, value)

    @task
    def build_training_set(night: Night) -> str:
        """Join labels with the features that were known then."""
        from evensong.pipelines import training_set

        with step(night) as (settings, value):
            return training_set.build(settings, value)

    @task
    def train_retriever(night: Night, training_set_uri: str) -> str:
        """Train the two towers."""
        from evensong.pipelines import train

        with step(night) as (settings, value):
            return train.retriever(settings, value, training_set_uri)

    @task
    def train_ranker(night: Night, training_set_uri: str, retriever_uri: str) -> str:
        """Train the model that orders the candidates."""
        from evensong.pipelines import train

        with step(night) as (settings, value):
            return train.ranker(settings, value, training_set_uri, retriever_uri)

    @task
    def build_index(night: Night, training_set_uri: str, retriever_uri: str) -> str:
        """Index the items, and measure the index against exact search."""
        from evensong.pipelines import index

        with step(night) as (settings, value):
            return index.build(settings, value, training_set_uri, retriever_uri)

    @task
    def evaluate(night: Night, training_set_uri: str, retriever_uri: str, ranker_uri: str, index_uri: str) -> str:
        """Judge challenger, champion and popularity on the same held-out events."""
        from evensong.pipelines import evaluate

        with step(night) as (settings, value):
            return evaluate.run(settings, value, training_set_uri, retriever_uri, ranker_uri, index_uri)

    @task
    def bundle(
        night: Night, training_set_uri: str, retriever_uri: str, ranker_uri: str, index_uri: str, evaluation_uri: str
    ) -> str:
        """Refit on everything, and put all that serves into one folder."""
        from evensong.pipelines import bundle

        with step(night) as (settings, value):
            return bundle.assemble(
                settings, value, training_set_uri, retriever_uri, ranker_uri, index_uri, evaluation_uri
            )

    @task
    def register(night: Night, bundle_uri: str, evaluation_uri: str) -> str:
        """Make the bundle one model version."""
        from evensong.pipelines import register, review

        with step(night) as (settings, value):
            version = register.run(settings, value, bundle_uri, evaluation_uri)
            show("MLflow version", review.version_page(settings, version))
            return version

    @task
    def gate(night: Night, version: str, evaluation_uri: str) -> dict[str, Any]:
        """Decide by the policy whether the version is better."""
        from evensong.pipelines import dossier, gate

        with step(night) as (settings, value):
            decision = gate.run(settings, value, version, evaluation_uri)
            show("Dossier", dossier.address(settings, version))
            show("Decision", f"{'promote' if decision['promote'] else 'keep'}: {'; '.join(decision['reasons'])}")
        return hand_on(decision, skip=None if decision["needs_review"] else "review")

    @task(trigger_rule="none_failed")
    def promote(night: Night, version: str) -> dict[str, Any]:
        """Move the alias `champion`, if the gate said yes, or the person whom it asked."""
        from evensong.pipelines import promote

        with step(night, alone=False) as (settings, value):
            moved = promote.run(settings, value, version)
            show("Champion", f"{moved['champion']}, {'moved' if moved['moved'] else 'as before'}")
            return moved

    @task
    def feature_report(night: Night) -> str:
        """Report on the features: missing, drift, redundant groups, what the champion needs."""
        from evensong.pipelines import feature_report

        with step(night, last=True) as (settings, value):
            return feature_report.run(settings, value)

    night = plan()
    ingested = ingest(night)
    validated = validate(night)
    validated.operator.operator_extra_links = (StepLink("Data Docs"),)
    features = build_features(night)
    examples = build_training_set(night)
    online = materialize(night)
    canary = leak_canary(night)
    compared = skew(night)
    ingested >> validated >> features >> [canary, compared]
    canary >> [online, examples]
    # requests that are answered while the store is half filled are the next night's to replay
    compared >> online

    retriever = train_retriever(night, examples)
    ranker = train_ranker(night, examples, retriever)
    items = build_index(night, examples, retriever)
    evaluation = evaluate(night, examples, retriever, ranker, items)

    artifact = bundle(night, examples, retriever, ranker, items, evaluation)
    version = register(night, artifact, evaluation)
    version.operator.operator_extra_links = (StepLink("MLflow version"),)
    decision = gate(night, version, evaluation)
    decision.operator.operator_extra_links = (StepLink("Dossier"),)
    # what it asks of the served features must have happened
    online >> decision
    answer = ReviewOperator(
        task_id="review",
        version=version,
        # the policy's deadline ends the wait
        execution_timeout=None,
        doc_md="Wait for a person, where the policy asks one; else skipped.",
    )
    decision >> answer >> promote(night, version) >> feature_report(night)


nightly_retraining()
