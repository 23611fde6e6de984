"""The recipes, one a file, on what they share: base.py."""
