"""A problem set on modern architectures: answered, computed, proved, trained and shown."""
