"""A page in Chromium as a screen of some size shows it; the fixture ``browser`` is in conftest.py."""

import base64
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCREENS = [(1280, 900, "light"), (1280, 900, "dark"), (390, 844, "light"), (390, 844, "dark")]


def show(browser: Any, url: str, width: int, height: int, scheme: str) -> None:
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    preferred = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
    browser.get(url)


def assert_readable(browser: Any, page: Path, width: int, height: int, scheme: str) -> None:
    """Without an error, no wider than the screen, nothing that axe finds, and without a network."""
    show(browser, page.as_uri(), width, height, scheme)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert_no_violations(browser)
    fetched = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [url for url in fetched if not url.startswith(("file:", "data:"))] == []


def assert_no_violations(browser: Any) -> None:
    from axe_core_python.selenium import Axe

    found = Axe().run(browser)["violations"]
    assert [(one["id"], [node["html"][:200] for node in one["nodes"]]) for one in found] == []


def wait(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Until it holds; AssertionError where it does not come to that."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def keep_screenshot(browser: Any, name: str) -> None:
    """The whole page, in build/screenshots or where SEER_PIPE_SCREENSHOTS says."""
    folder = Path(os.environ.get("SEER_PIPE_SCREENSHOTS", "build/screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    whole = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
    (folder / f"{name}.png").write_bytes(base64.b64decode(whole["data"]))
