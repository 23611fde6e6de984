"""Benchmarks: how fast, against what. Each is a command, `python -m experiments.benchmarks.NAME`."""
