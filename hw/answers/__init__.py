"""The problem set's questions, answered: one module a question, each result proved by several routes."""
