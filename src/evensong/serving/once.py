"""One answer without the service: what `evensong recommend` and the demo show."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import Any

from evensong.errors import ConfigurationError, RegistryError
from evensong.serving.champion import Champion
from evensong.serving.metrics import Metrics
from evensong.serving.recommend import Ask, UserReader, recommend
from evensong.serving.schemas import RecommendQuery
from evensong.settings import Settings

PATIENCE_SECONDS = 60.0


def answer(settings: Settings, user_id: str, k: int | None = None) -> dict[str, Any]:
    """What the service would answer now, in the fields of `schemas.Recommendations`.

    Raises:
        ConfigurationError: k is not between 1 and `serving.max_k`.
        ValidationError: the user id is none that the service would take.
        RegistryError: there is no champion, or its bundle cannot be loaded.
    """
    serving = settings.serving
    count = min(serving.default_k, serving.max_k) if k is None else k
    if not 1 <= count <= serving.max_k:
        more = ", or raise EVENSONG_SERVING__MAX_K" if count > serving.max_k else ""
        raise ConfigurationError(f"k: expected a number from 1 to {serving.max_k}, got {count}; ask for so many{more}")
    RecommendQuery(user_id=user_id)
    metrics = Metrics()
    champion = Champion(settings, metrics)
    deadline = time.monotonic() + PATIENCE_SECONDS
    champion.look()
    # the first question to a registry waits for MLflow's import, which a busy machine takes its time for
    while champion.registry_is_away and time.monotonic() < deadline:
        time.sleep(0.5)
        champion.look()
    if champion.in_use is None:
        reasons = "; ".join(champion.warnings) or "no version carries the alias champion; run `evensong nightly`"
        raise RegistryError(f"no model to answer with: {reasons}")
    ask = Ask(request_id=f"cli-{uuid.uuid4().hex[:12]}", user_id=user_id, k=count)
    reply = recommend(
        ask,
        champion.in_use,
        champion.features,
        UserReader(settings, metrics),
        metrics,
        filter_rule=serving.filter,
        now=datetime.now(UTC),
    )
    return reply.answer
