"""Studies that measure the answers' statements on training: `python -m experiments.studies.NAME`."""
