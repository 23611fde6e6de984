"""Answers, computes, proves, trains and shows a problem set on modern architectures."""
