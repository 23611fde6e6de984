"""What the answers say of training, measured. Each is a command, `python -m experiments.studies.NAME`."""
