"""Speeds as ratios to a peer in the same run, answers compared first; run them with `python -m benchmarks NAME`."""
