"""How often the gate errs: a thousand simulated nights of the A/A case and of a gain that it should see.

The peer is the rule that most pipelines use, promote when the mean is higher, on the very same nights. Every night goes
through the whole gate with the repository's policy. Further nights have a challenger that is better for everybody but
new users, for whom it finds half of what the champion finds.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks._report import report, say
from evensong.evaluation.policy import load_policy
from evensong.evaluation.power import Population, report_of, simulate, smallest_detectable

POLICY = Path(__file__).parents[1] / "mlflow" / "promotion_policy.yaml"
#: Versions that whoever hopes for luck makes of a night.
TRIES = 5
#: Of `--users`, the new ones whom a challenger ruins.
RUINED = (10, 20, 40, 80)
TABLE = (50, 100, 200, 500, 1000, 2000, 5000)


def main(argv: list[str]) -> None:
    """Simulate and report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gate", description=__doc__)
    parser.add_argument("--nights", type=int, default=1000)
    parser.add_argument("--users", type=int, default=300)
    parser.add_argument("--seed", type=int, default=20261122)
    parser.add_argument("--heavy-tailed", action="store_true", help="few users hold most of the targets")
    given = parser.parse_args(argv)
    policy = load_policy(POLICY.read_text())
    population = Population(heavy_tailed=given.heavy_tailed)
    start = time.perf_counter()

    gain = smallest_detectable(policy, population, num_users=given.users, seed=given.seed, nights=50)
    say(f"{given.users} users: smallest detectable gain {gain:.4f} on {policy.primary.metric}")
    same = simulate(policy, population, nights=given.nights, num_users=given.users, gain=0.0, seed=given.seed + 1)
    say(f"A/A: {same.promoted} of {same.nights} nights promoted; stopped by {same.reasons}")
    plain = _plain_rule(population, given.nights, given.users, given.seed + 1)
    say(f"A/A, higher mean wins: {plain:.3f} of the same nights promoted")
    better = simulate(policy, population, nights=given.nights, num_users=given.users, gain=gain, seed=given.seed + 2)
    say(f"gain {gain:.4f}: {better.promoted} of {better.nights} nights promoted; stopped by {better.reasons}")
    again = simulate(
        policy,
        population,
        nights=max(1, given.nights // 4),
        num_users=given.users,
        gain=0.0,
        seed=given.seed + 5,
        tries=TRIES,
    )
    say(f"A/A, each night tried up to {TRIES} times: {again.promoted} of {again.nights} nights promoted")
    ruined = {}
    for users in RUINED:
        population_of = replace(population, share_new=users / given.users, left_for_new=0.5)
        outcome = simulate(
            policy,
            population_of,
            nights=max(1, given.nights // 4),
            num_users=given.users,
            gain=2 * gain,
            seed=given.seed + 4,
        )
        ruined[str(users)] = round(outcome.rate, 4)
        say(f"{users:>6} new users find half, the others gain {2 * gain:.3f}: {outcome.rate:.3f} of nights promoted")
    table = {
        str(users): round(smallest_detectable(policy, population, num_users=users, seed=given.seed + 3, nights=20), 5)
        for users in TABLE
    }
    for users, smallest in table.items():
        say(f"{users:>6} users: smallest detectable gain {smallest:.4f}")
    report(
        benchmark="gate",
        ours=same.rate,
        peer=plain,
        peer_name="promote when the mean is higher",
        ratio=round(same.rate / plain, 5),
        unit="false promotions a night",
        false_promotion_rate=same.rate,
        false_promotion_rate_of_five_tries=again.rate,
        power=better.rate,
        smallest_detectable_gain=round(gain, 5),
        smallest_detectable_gain_by_users=table,
        promoted_with_halved_new_users=ruined,
        seed=given.seed,
        nights=given.nights,
        num_users=given.users,
        heavy_tailed=given.heavy_tailed,
        seconds=round(time.perf_counter() - start, 1),
    )


def _plain_rule(population: Population, nights: int, num_users: int, seed: int) -> float:
    """Share of the A/A nights of `simulate` on which the challenger's mean is above the champion's."""
    promoted = 0
    for number in range(nights):
        made = report_of(population.night(num_users, 0.0, np.random.default_rng([seed, number])))
        assert made.champion is not None
        promoted += made.challenger.metrics["recall_at_20"] > made.champion.metrics["recall_at_20"]
    return promoted / nights
