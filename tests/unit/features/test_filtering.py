"""What the filter rule hides is the same for who serves and for who judges."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from evensong.features import filtering
from evensong.pipelines import evaluate
from evensong.serving.metrics import Metrics
from evensong.serving.recommend import UserReader
from evensong.settings import load_settings

#: `bought long ago` has left the list of seen items, which has an end; the second user is new.
USERS = pl.DataFrame(
    {
        "user_id": ["u1", "u2"],
        "seen_item_ids": [["seen", "bought"], None],
        "purchased_item_ids": [["bought long ago", "bought"], None],
    }
)
EXPECTED = {
    "seen": {"seen", "bought", "bought long ago"},
    "purchased": {"bought", "bought long ago"},
    "none": set(),
}


class Online:
    """An online store of these users."""

    def users_and_seen(self, user_ids: list[str]) -> tuple[pl.DataFrame, pl.DataFrame]:
        found = USERS.filter(pl.col("user_id").is_in(user_ids))
        return found, found


@pytest.mark.parametrize("rule", EXPECTED)
def test_what_is_hidden_is_the_same_for_the_service_and_the_evaluation(rule: Any) -> None:
    assert filtering.hidden(USERS, rule) == {"u1": EXPECTED[rule], "u2": set()}
    assert evaluate.excluded(USERS, rule) == filtering.hidden(USERS, rule)
    reader = UserReader(load_settings(serving={"filter": rule}), Metrics())
    for user_id in ("u1", "u2"):
        _, hidden = reader.read(Online(), user_id)  # type: ignore[arg-type]
        assert set(hidden) == filtering.hidden(USERS, rule)[user_id]


def test_every_rule_of_the_settings_is_known() -> None:
    from typing import get_args

    from evensong.settings import ServingSettings

    assert set(filtering.HIDDEN) == set(get_args(ServingSettings.model_fields["filter"].annotation))
