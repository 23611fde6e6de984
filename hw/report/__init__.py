"""Renders answers and logs as a page, Markdown, a PDF, a hand-in or plain text; it computes no result."""
