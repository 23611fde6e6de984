"""Benchmarks that compare speed with other programs: `python -m experiments.benchmarks.NAME`."""
