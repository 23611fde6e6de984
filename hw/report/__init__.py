"""Renders answers and logs handed to it. No arithmetic."""
