"""The page's arithmetic against Python's, and its widgets under a reader's hands."""

from hw.report import play

_COLOURS = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fff; --line: #ddd; --muted: #595959;
  --accent: #0b57d0; --accent-2: #a14a00; --bad: #b3001b; --code-paper: #f5f5f3; }
@media (prefers-color-scheme: dark) { :root { --ink: #eee; --paper: #131313; --line: #3a3a3a;
  --muted: #b0b0b0; --accent: #8ab4f8; --accent-2: #ffb26b; --bad: #ff8a8a; --code-paper: #1e1e1e; } }
body { margin: 0 auto; max-width: 60rem; padding: 0 1rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
"""
WIDGETS = ("attention", "cnn", "unrolled", "vanishing", "saturation")


def harness(arithmetic: str | None = None) -> str:
    """A page of nothing but the widgets."""
    arithmetic = play.asset("arithmetic.js") if arithmetic is None else arithmetic
    places = "\n".join(f'<h2>{name}</h2><div class="play" data-play="{name}" data-level="3" hidden></div>' for name in WIDGETS)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>play</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{_COLOURS}{play.asset(play.STYLE)}</style></head>
<body><main><h1>play</h1>{places}</main>
<script type="application/json" id="play-data">{play.play_json()}</script>
<script>{arithmetic}</script>
<script>{play.asset("play.js")}</script>
</body></html>"""
