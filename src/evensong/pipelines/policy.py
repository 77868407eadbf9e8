"""Where the promotion policy is read from."""

from __future__ import annotations

from pathlib import Path

from evensong.errors import ConfigurationError
from evensong.evaluation.policy import PromotionPolicy, load_policy
from evensong.settings import Settings


def read_policy(settings: Settings) -> PromotionPolicy:
    """The policy that the settings name; a relative path counts from the working folder, then from the repository.

    Raises:
        ConfigurationError: there is none, or it is wrong.
    """
    named = settings.registry.policy_path
    repository = Path(__file__).resolve().parents[3]
    for path in (named, repository / named):
        if path.is_file():
            return load_policy(path.read_text(), str(named))
    raise ConfigurationError(f"{named}: expected the promotion policy, found no file; set registry.policy_path")
