"""The funnel, retrieve, filter, rank: one code for the evaluation, the simulator's loop and the service."""
