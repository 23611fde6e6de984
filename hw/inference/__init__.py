"""Applies finished runs. A command imports only the module that it needs, so that it starts fast."""
