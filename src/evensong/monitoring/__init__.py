"""Watching what runs: drift, freshness, online metrics."""
