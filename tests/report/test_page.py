"""Tests the page in a real browser: it loads nothing, fits the screen, is accessible, and needs no script."""

import contextlib

import pytest
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.support.ui import WebDriverWait

from hw.report import page


@pytest.fixture(scope="module")
def text(whole):
    return page.page(whole)


@pytest.fixture
def shown(show, text):
    return show(text)


def _own_errors(browser) -> list[str]:
    """Returns the new errors of the browser's log, which may come a moment after their cause."""
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def _errors_with(browser, words: str) -> list[str]:
    """Waits up to ten seconds for an error with these words; returns all errors until then."""
    found: list[str] = []

    def come(_) -> bool:
        found.extend(_own_errors(browser))
        return any(words in message for message in found)

    with contextlib.suppress(TimeoutException):
        WebDriverWait(browser, 10).until(come)
    return found


def test_nothing_is_asked_for_and_nothing_fails(browser, show, text):
    browser.get_log("browser")  # empties the log of earlier tests
    show(text)
    asked = browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert [name for name in asked if not name.startswith("data:")] == []
    # The page's policy refuses an image from elsewhere. Its error comes last, so the text itself has none.
    before = _own_errors(browser)
    show(text.replace("</main>", '<img src="http://127.0.0.1:9/x.png" alt="x"></main>'))
    errors = before + _errors_with(browser, "Content Security Policy")
    assert len(errors) == 1 and "Content Security Policy" in errors[0], errors


@pytest.mark.parametrize("width", [360, 1440])
def test_it_fits_the_screen(shown, screen, width):
    screen(width, "light")
    wide = shown.execute_script("return document.documentElement.scrollWidth")
    assert wide <= width, f"{wide - width} pixels too wide"


# This takes half a minute on each screen. CI tests it on one screen, and the widgets on two.
@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (1440, "dark"),
        *(pytest.param(*v, marks=pytest.mark.slow) for v in [(1440, "light"), (360, "light"), (360, "dark")]),
    ],
)
def test_nobody_is_shut_out(shown, screen, axe, width, scheme):
    screen(width, scheme)
    shown.execute_script(axe)
    found = shown.execute_async_script(
        "const done = arguments[arguments.length - 1];"
        # We ask for violations only: a list of all elements that pass takes most of the time.
        "axe.run(document, {resultTypes: ['violations']})"
        ".then(r => done(r.violations), e => done([{id: String(e), impact: 'critical'}]))"
    )
    serious = [
        (v["id"], [n["html"][:100] for n in v.get("nodes", [])][:3])
        for v in found
        if v["impact"] in ("serious", "critical")
    ]
    assert serious == []


def test_every_figure_formula_and_widget_is_there_to_see(shown, screen):
    screen(1440, "light")
    empty = shown.execute_script(
        "return [...document.querySelectorAll('svg, math, .play, img')]"
        ".filter(e => !e.closest('details:not([open])'))"
        ".filter(e => { const b = e.getBoundingClientRect(); return b.width < 4 || b.height < 4; })"
        ".map(e => e.outerHTML.slice(0, 80))"
    )
    assert empty == []
    broken = shown.execute_script(
        "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    )
    assert broken == []
    assert shown.execute_script("return document.querySelectorAll('.play:not([hidden])').length") == 5


def test_drawings_have_no_label_outside(shown, screen):
    screen(1440, "light")
    outside = shown.execute_script(
        "return [...document.querySelectorAll('figure svg')].flatMap(svg => {"
        "  const frame = svg.getBoundingClientRect();"
        "  return [...svg.querySelectorAll('text')].filter(t => {"
        "    const b = t.getBoundingClientRect();"
        "    return b.left < frame.left - 1 || b.right > frame.right + 1"
        "      || b.top < frame.top - 1 || b.bottom > frame.bottom + 1;"
        "  }).map(t => svg.querySelector('title').textContent + ': ' + t.textContent);"
        "})"
    )
    assert outside == []


def test_keys_reach_everything_in_the_order_of_the_page(shown):
    order = shown.execute_script(
        "const all = [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex]')];"
        "return all.map(e => e.tabIndex)"
    )
    assert len(order) > 50 and set(order) == {0}, "another order than the page's, or an unreachable element"


def test_without_scripts_all_but_the_editing_is_there(browser, show, text):
    with_scripts = show(text).execute_script("return document.querySelectorAll('math, svg, table').length")
    in_widgets = browser.execute_script(
        "return document.querySelectorAll('.play math, .play svg, .play table').length"
    )
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(text)
        document = browser.execute_cdp_cmd("DOM.getDocument", {"depth": 0})["root"]["nodeId"]

        def count(selector: str) -> int:
            query = {"nodeId": document, "selector": selector}
            return len(browser.execute_cdp_cmd("DOM.querySelectorAll", query)["nodeIds"])

        assert count(".play:not([hidden])") == 0 and count(".play[hidden]") == 5
        assert count("math, svg, table") == with_scripts - in_widgets
        assert count("section[id^=question-] .answer") == 8
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
