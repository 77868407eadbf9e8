"""What the filter rule hides from a user: the service, the evaluation and the simulated shop all ask here."""

from __future__ import annotations

from collections.abc import Collection

from evensong.types import Frame

#: `serving.filter` to the features of `user_seen` whose items are hidden. A user's list of seen items has an end, and
#: what was bought is remembered for longer: so who hides what was seen hides what was bought too.
HIDDEN: dict[str, tuple[str, ...]] = {
    "seen": ("seen_item_ids", "purchased_item_ids"),
    "purchased": ("purchased_item_ids",),
    "none": (),
}


def hidden(users: Frame, rule: str) -> dict[str, Collection[str]]:
    """The items that the rule hides from each user; `users` has `user_id` and the rule's features."""
    lists = users.select("user_id", *HIDDEN[rule])
    return {user_id: {item for items in rest for item in items or ()} for user_id, *rest in lists.iter_rows()}
