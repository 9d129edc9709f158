"""The built documentation in a real browser: every page, on a desk and on a phone."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.browser import keep_screenshot, show, wait

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of the pages, built and served on loopback."""
    if find_spec("mkdocs") is None:
        pytest.skip("no mkdocs here: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    subprocess.run(words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(("width", "height", "scheme"), [(1280, 900, "light"), (400, 800, "dark")])
def test_readable(browser: Any, site: str, width: int, height: int, scheme: str) -> None:
    for page in sorted((ROOT / "docs").glob("*.md")):
        show(browser, f"{site}/" if page.stem == "index" else f"{site}/{page.stem}/", width, height, scheme)
        assert browser.get_log("browser") == []
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width, page.name
        assert browser.execute_script("return document.querySelector('h1').innerText"), page.name
        fetched = browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
        assert [url for url in fetched if not url.startswith((site, "data:"))] == []
        keep_screenshot(browser, f"docs-{page.stem}-{width}-{scheme}")


def test_search_finds_a_setting(browser: Any, site: str) -> None:
    from selenium.webdriver.common.by import By

    show(browser, f"{site}/", 1280, 900, "light")
    browser.execute_script("document.querySelector('#__search').click()")
    field = browser.find_element(By.CSS_SELECTOR, ".md-search__input")
    wait(field.is_displayed)
    field.send_keys("max_bad_fraction")
    found = "return [...document.querySelectorAll('.md-search-result__link')].map(link => link.pathname)"
    wait(lambda: "/settings/" in browser.execute_script(found))
