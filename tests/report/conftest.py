"""Provides a browser without a window, and axe-core, which finds barriers to accessibility."""

import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# The browser shows only the page: it has no sandbox, since tests may run as root, and calls no server.
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
)

# Widths of a phone and of a desktop, in light and dark: (pixels, colour scheme).
SCREENS = (
    (360, "light"),
    (1440, "dark"),
    pytest.param(360, "dark", marks=pytest.mark.slow),
    pytest.param(1440, "light", marks=pytest.mark.slow),
)


@pytest.fixture(scope="session")
def browser(tmp_path_factory) -> Iterator:
    """Starts Chromium under selenium with a fresh profile; skips if one of the three programs is missing."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is missing: pip install '.[test]'")
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        pytest.skip(f"{' and '.join(missing)} missing: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs["chromedriver"]))
    driver.set_script_timeout(120)
    yield driver
    driver.quit()


@pytest.fixture(scope="session")
def whole():
    """Builds the report of all questions from the committed logs."""
    from hw.report import document

    return document.build()


@pytest.fixture(scope="session")
def show(browser, tmp_path_factory) -> Callable[[str], Any]:
    """Returns show(html), which loads a page from a file, as a reader would, and returns the browser."""
    path = tmp_path_factory.mktemp("pages") / "page.html"

    def show(page: str):
        path.write_text(page, encoding="utf-8")
        browser.get(path.as_uri())
        return browser

    return show


@pytest.fixture
def screen(browser) -> Iterator[Callable[[int, str], None]]:
    """Returns screen(width, "light" or "dark"), which sets the screen until the test ends."""

    def screen(width: int, scheme: str) -> None:
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    yield screen
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.fixture(scope="session")
def axe() -> str:
    """Returns axe-core's source, to be run in a page; its `axe.run` gives the findings."""
    spec = importlib.util.find_spec("selenium_axe_python")
    if spec is None:
        pytest.skip("axe-core is missing: pip install '.[test]' (selenium-axe-python carries it)")
    return Path(spec.origin).with_name("axe-core").joinpath("axe.min.js").read_text(encoding="utf-8")
