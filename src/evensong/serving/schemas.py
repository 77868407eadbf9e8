"""The shapes of what the service accepts and answers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

#: Ids are opaque to us, but they reach logs and keys of the online store: bounded, and no control characters.
Id = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Label = Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]

Reason = Literal[
    "unknown_user",
    "no_history",
    "nothing_left",
    "features_unavailable",
    "item_features_unavailable",
    "features_redefined",
    "model_failed",
]


class Question(BaseModel):
    """What a caller sends; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(BaseModel):
    """What the service sends."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# `strict` is not set on k: a query string carries text. Its upper bound is a setting, so the route checks it.
K = Annotated[int | None, Field(description="How many items at most; without it the service's default.")]


class RecommendQuery(Question):
    """The query of `GET /recommend`."""

    user_id: Id = Field(description="For whom. A user that nobody knows gets the popular items.", examples=["u17"])
    k: K = None


class Context(Question):
    """What the caller knows about this moment and the online store does not."""

    recent_item_ids: list[Id] = Field(
        default=[],
        max_length=50,
        description="Items of this session, oldest first; they continue the user's history for this request alone.",
    )
    session_id: Label | None = Field(None, description="Logged with the request.")
    surface: Label | None = Field(None, description="Where the items will be shown, such as `home`; logged.")


class RecommendBody(Question):
    """The body of `POST /recommend`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"user_id": "u17", "k": 5},
                {
                    "user_id": "u17",
                    "k": 20,
                    "exclude_item_ids": ["i3", "i9"],
                    "context": {"recent_item_ids": ["i42"], "session_id": "s1", "surface": "home"},
                },
            ]
        }
    )

    user_id: Id
    k: Annotated[K, Field(strict=True)] = None
    context: Context = Context()
    exclude_item_ids: list[Id] = Field(default=[], max_length=1000, description="Never answer with one of these.")


class RecommendedItem(Answer):
    """One recommended item."""

    rank: int = Field(description="From 1.")
    item_id: str
    title: str | None
    category: str | None
    score: float = Field(description="Orders the items of one answer; not comparable between sources or versions.")
    source: Literal["model", "popularity"]


class Recommendations(Answer):
    """The answer of `/recommend`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "request_id": "1f0c2a6b8d9e4f7f9d3f6f4b8c1d2e3f",
                    "user_id": "u17",
                    "k": 2,
                    "source": "model",
                    "reason": None,
                    "model_version": "3",
                    "model_as_of": "2026-01-15T00:00:00+00:00",
                    "filter": "seen",
                    "items": [
                        {
                            "rank": 1,
                            "item_id": "i42",
                            "title": "Walnut serving board",
                            "category": "Kitchen > Boards",
                            "score": 2.31,
                            "source": "model",
                        },
                        {
                            "rank": 2,
                            "item_id": "i7",
                            "title": "Linen apron",
                            "category": "Kitchen > Textiles",
                            "score": 1.98,
                            "source": "model",
                        },
                    ],
                }
            ]
        }
    )

    request_id: str = Field(description="Also in the header X-Request-ID; `evensong explain` takes it.")
    user_id: str
    k: int = Field(description="How many were asked for; fewer items come when fewer are left.")
    source: Literal["model", "popularity"]
    reason: Reason | None = Field(description="Why the popular items, when `source` is `popularity`.")
    model_version: str
    model_as_of: str | None = Field(description="The model knows nothing that became known later.")
    filter: Literal["seen", "purchased", "none"] = Field(description="What the service hides from this user by rule.")
    items: list[RecommendedItem]


class ModelInUse(Answer):
    """The model that answers at this moment."""

    name: str
    version: str
    as_of: str | None
    loaded_at: str
    num_items: int


class Health(Answer):
    """The process lives."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"status": "ok"}]})

    status: Literal["ok"] = "ok"


class Ready(Answer):
    """The service answers from a loaded model; what it worries about beside that."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "status": "ready",
                    "model": {
                        "name": "recommender",
                        "version": "3",
                        "as_of": "2026-01-15T00:00:00+00:00",
                        "loaded_at": "2026-01-15T02:11:09+00:00",
                        "num_items": 1682,
                    },
                    "features_as_of": "2026-01-15T00:00:00+00:00",
                    "warnings": [],
                }
            ]
        }
    )

    status: Literal["ready"] = "ready"
    model: ModelInUse
    features_as_of: str | None = Field(description="The moment of the newest features in the online store.")
    warnings: list[str] = Field(description="What is wrong although the service answers, and what to do.")


class Person(Answer):
    """A user to choose from."""

    user_id: str
    num_interactions: int
    last_interaction: str | None


class People(Answer):
    """Users to choose from."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"users": [{"user_id": "u17", "num_interactions": 31, "last_interaction": "2026-01-14T20:11:00+00:00"}]}
            ]
        }
    )

    users: list[Person]


class PeopleQuery(Question):
    """The query of `GET /users`."""

    limit: int = Field(20, ge=1, le=100, description="How many at most.")
    starts_with: str = Field("", max_length=256, description="Only ids that begin so.")


class HistoryEvent(Answer):
    """One thing that a user did."""

    item_id: str
    title: str | None
    category: str | None
    event_type: str | None


class History(Answer):
    """What the online store knows of a user, newest first."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "user_id": "u17",
                    "known": True,
                    "num_interactions": 31,
                    "last_interaction": "2026-01-14T20:11:00+00:00",
                    "top_categories": ["Kitchen", "Garden"],
                    "events": [
                        {"item_id": "i3", "title": "Oak tray", "category": "Kitchen > Trays", "event_type": "click"}
                    ],
                }
            ]
        }
    )

    user_id: str
    known: bool
    num_interactions: int
    last_interaction: str | None
    top_categories: list[str]
    events: list[HistoryEvent]


class Detail(Answer):
    """One thing that is wrong with a request."""

    field: str
    expected: str
    came: str


class ProblemBody(Answer):
    """What went wrong, and what to do."""

    code: str
    message: str = Field(description="What was expected and what came.")
    what_to_do: str
    request_id: str
    details: list[Detail] = []


class Problem(Answer):
    """The one form of every 4xx and 5xx answer."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "invalid_request",
                        "message": "query.k: expected a number from 1 to 200, came '10000'",
                        "what_to_do": "correct what is named and send the request again; /openapi.json describes it",
                        "request_id": "1f0c2a6b8d9e4f7f9d3f6f4b8c1d2e3f",
                        "details": [{"field": "query.k", "expected": "a number from 1 to 200", "came": "'10000'"}],
                    }
                }
            ]
        }
    )

    error: ProblemBody
