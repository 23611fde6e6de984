"""A finished run at work. A command imports the one module that it needs, so that it starts fast."""
