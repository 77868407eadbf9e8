"""Metrics, slices, report, and the gate, a pure decision."""
