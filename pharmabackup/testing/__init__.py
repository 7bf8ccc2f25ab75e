"""Conformance suites and simulated faults, shipped for whoever writes an adapter or a source of their own."""
