"""A page in Chromium as a screen of some size shows it; the fixture ``browser`` is in conftest.py."""

import base64
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def show(browser: Any, url: str, width: int, height: int, scheme: str) -> None:
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    preferred = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": preferred})
    browser.get(url)


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
