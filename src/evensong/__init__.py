"""Evensong retrains a recommender every night and promotes it only when the evidence says that it is better."""

__version__ = "0.1.0"
