"""The pages in a real browser: no error, all drawn, readable on a phone and by assistive technology.

Screenshots are left in build/screenshots (SEER_PIPE_SCREENSHOTS), for a person to look at.
"""

import base64
import io
import json
import re
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ingest.tools.excluded import exclude
from seer_pipe.report.atlas import write_atlas
from seer_pipe.report.compare import read_sides, write_comparison
from seer_pipe.report.curated import write_curation
from seer_pipe.report.page import write_report
from seer_pipe.shards import ShardSet
from seer_pipe.train.loop import train
from seer_pipe.train.telemetry import read_metrics
from tests.browser import SCREENS, assert_readable, keep_screenshot, show, wait
from tests.report.test_atlas import write_embeddings
from tests.train.helpers import make_pictures, small

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("pages")
    make_pictures(root / "pictures", [40])
    assert train(small(root / "pictures", train={"images": 48}), root / "run", say=lambda _: None)
    rng = np.random.default_rng(0)
    write_embeddings(root / "e.parquet", [f"{n:06d}" for n in range(40)], ["00000.tar"] * 40, list(range(40)),
                     np.arange(40) % 10, rng.standard_normal((40, 8)))  # fmt: skip
    shards = ShardSet.open(root / "pictures")
    atlas = write_atlas(root / "run", root / "atlas", str(root / "pictures"), embeddings=root / "e.parquet")
    (root / "mine.jpg").write_bytes(shards.read(0, shards.sidecar(0).slice(3, 1).to_pylist()[0]))
    searched = write_atlas(root / "run", root / "searched", search=[root / "mine.jpg"])
    by_kmeans = write_atlas(root / "run", root / "by-kmeans", clusters=7)
    curated = write_curation(root / "run", root / "curated", threshold=0.5, keep=20, labels="folder")
    assert curated is not None
    evaluation = {"evaluation": "knn", "k": 20, "data": "val", "accuracy": 0.5, "images_seen": 48}
    (root / "run/evaluation").mkdir()
    (root / "run/evaluation/knn-48.json").write_text(json.dumps(evaluation))
    for number in range(9):  # more than there are colours
        shutil.copytree(root / "run", root / f"runs/{number}")
    compared = write_comparison(read_sides([root / "runs"]), root / "compared")
    return {"compared": compared, "report": write_report(root / "run"), "atlas": atlas, "searched": searched,
            "by-kmeans": by_kmeans, "curated": Path(curated["page"])}  # fmt: skip


@pytest.mark.parametrize("name", ["compared", "report", "atlas", "searched", "by-kmeans", "curated"])
@pytest.mark.parametrize(("width", "height", "scheme"), SCREENS)
def test_readable(browser: Any, pages: dict[str, Path], name: str, width: int, height: int, scheme: str) -> None:
    assert_readable(browser, pages[name], width, height, scheme)
    keep_screenshot(browser, f"{name}-{width}-{scheme}")


def test_report_draws_its_charts(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["report"].as_uri(), 1280, 900, "light")
    drawn = browser.execute_script(
        "return [...document.querySelectorAll('svg path.line')].map(line => line.getTotalLength())"
    )
    assert len(drawn) >= 8
    assert min(drawn) > 0
    sizes = browser.execute_script("return [...document.images].map(image => image.naturalWidth)")
    assert len(sizes) > 24
    assert min(sizes) > 0


def test_zoom_and_crosshair_go_over_all_charts(browser: Any, pages: dict[str, Path]) -> None:
    """By dragging, by numbers and by keys; what is told are the run's own numbers."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["report"].as_uri(), 1280, 900, "light")
    shown = "return charts.map(chart => chart.plot.getAttribute('viewBox').split(' ').map(Number))"
    cut = "return [...new Set(charts.map(chart => getComputedStyle(chart.plot).overflowX))]"
    values = "return charts.map(chart => chart.values.hidden ? '' : chart.values.textContent)"
    whole = browser.execute_script(shown)
    drawn = browser.execute_script("return charts.map(chart => chart.axes.innerHTML)")
    chart = browser.find_element(By.CSS_SELECTOR, ".chart")
    row = read_metrics(pages["report"].parents[1])[2]
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(browser).move_to_element(chart).perform()
    told = browser.execute_script(values)
    assert all(text.startswith("step ") for text in told)
    ActionChains(browser).move_to_element_with_offset(chart, -60, 0).click_and_hold().move_by_offset(
        120, 0
    ).release().perform()
    zoomed = browser.execute_script(shown)
    assert all(x > 0 and x + wide < 6 for x, _, wide, _ in zoomed)
    assert len({(x, wide) for x, _, wide, _ in zoomed}) == 1
    assert browser.execute_script(cut) == ["hidden"]
    ActionChains(browser).double_click(chart).perform()
    assert browser.execute_script(shown) == whole
    assert browser.execute_script(cut) == ["visible"]  # a point at the edge is seen whole
    assert browser.execute_script("return charts.map(chart => chart.axes.innerHTML)") == drawn
    field = browser.find_element(By.NAME, "from")
    field.clear()
    field.send_keys("2", Keys.TAB)
    assert {(x, wide) for x, _, wide, _ in browser.execute_script(shown)} == {(2, 4)}
    browser.find_element(By.CSS_SELECTOR, ".zoom button").click()
    assert browser.execute_script(shown) == whole
    browser.execute_script("arguments[0].focus()", chart)
    browser.switch_to.active_element.send_keys(Keys.HOME, Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    told = browser.execute_script(values)
    assert told[0].startswith(f"step 3loss {row['loss']:.4g}".rstrip("0"))
    assert (
        browser.find_element(By.CSS_SELECTOR, ".zoom [role=status]")
        .get_attribute("textContent")
        .startswith("step 3, loss")
    )
    browser.switch_to.active_element.send_keys("+")
    assert {wide for _, _, wide, _ in browser.execute_script(shown)} == {3}
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert browser.execute_script(shown) == whole
    assert browser.get_log("browser") == []


def test_the_report_prints_within_its_pages(browser: Any, pages: dict[str, Path]) -> None:
    show(browser, pages["report"].as_uri(), 1280, 900, "dark")
    pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
    assert pdf.startswith(b"%PDF")
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", pdf)) <= 8
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                {"width": 688, "height": 1000, "deviceScaleFactor": 1, "mobile": False})  # fmt: skip
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 688
        look = "const style = getComputedStyle(document.querySelector(arguments[0])); return style[arguments[1]]"
        assert browser.execute_script(look, ".zoom", "display") == "none"
        assert browser.execute_script(look, "body", "backgroundColor") == "rgb(255, 255, 255)"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


LISTED = "return [...document.querySelectorAll('#list button')].map(button => button.textContent)"


def seen(browser: Any) -> Any:
    """The pixels of the map, as they are on the screen: a page that is a file may not read its own canvas."""
    from selenium.webdriver.common.by import By

    shot = browser.find_element(By.ID, "map").screenshot_as_png
    return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB"))


def has_pictures(browser: Any) -> bool:
    """Many colours, not the one of what is still to come."""
    return len(np.unique(seen(browser)[::7, ::7].reshape(-1, 3), axis=0)) > 200


def test_atlas_is_searched_by_number_key_and_word(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["atlas"].as_uri(), 1280, 900, "light")
    assert len(browser.execute_script(LISTED)) == 10
    field = browser.find_element(By.ID, "find")
    field.send_keys("7")
    wait(lambda: "Cluster 7" in browser.execute_script(LISTED))
    field.clear()
    field.send_keys("000013")  # a key: of cluster 3
    wait(lambda: browser.execute_script(LISTED) == ["Cluster 3"])
    assert browser.find_element(By.ID, "said").text == "1 image of 1 cluster: found by “000013”"
    assert (
        browser.find_element(By.CSS_SELECTOR, "#selection .picture").get_attribute("title").startswith("image 000013 ")
    )
    browser.find_element(By.ID, "order").send_keys(Keys.TAB)  # to the only item of the list
    browser.switch_to.active_element.send_keys(Keys.ENTER)
    detail = browser.find_element(By.ID, "detail").text
    assert detail.startswith("Cluster 3\n")
    assert "4 images" in detail
    assert "seer-ingest exclude" in detail
    assert browser.find_element(By.LINK_TEXT, "The keys of its images").get_attribute("href").endswith("keys/3.csv")
    field.clear()
    field.send_keys("bricks")  # the folder of the source, as a domain is
    wait(lambda: "found by “bricks”" in browser.find_element(By.ID, "said").text)
    kinds = browser.execute_script("return chunk(0).then(one => one.group.filter((_, i) => mask[i]))")
    assert set(kinds) == {"bricks"}
    field.clear()
    field.send_keys("no such thing")
    wait(lambda: "Nothing is found" in browser.find_element(By.ID, "said").text)
    assert browser.get_log("browser") == []


def test_the_map_by_keyboard(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, pages["atlas"].as_uri(), 1280, 900, "light")
    wait(lambda: has_pictures(browser))
    canvas = browser.find_element(By.ID, "map")
    at = browser.execute_script("goTo(X[9] + .5, Y[9] + .5, 6); map.focus(); return A.cluster[HOME[9]]")
    canvas.send_keys(Keys.ENTER)
    assert browser.find_element(By.CSS_SELECTOR, "#detail h2").text == f"Cluster {at}"
    assert browser.execute_script("return looked") == 9
    before = browser.execute_script("return {...view}")
    canvas.send_keys(Keys.ARROW_LEFT, "-")
    after = browser.execute_script("return {...view}")
    assert (after["x"] < before["x"], after["scale"] < before["scale"]) == (True, True)
    canvas.send_keys("0")
    assert browser.execute_script("return view.scale === fitting()")
    browser.find_element(By.ID, "in-view").send_keys(Keys.ENTER)
    assert browser.find_element(By.ID, "said").text == "40 images of 10 clusters: within the lasso"
    canvas.send_keys(Keys.ESCAPE)
    assert browser.execute_script("return mask") is None


def test_a_lasso_gives_the_keys_that_exclude_takes(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    show(browser, pages["atlas"].as_uri(), 1280, 900, "light")
    browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    inside = browser.execute_script(  # the left half of the map
        "by('lasso').click(); view.x = A.cells[0] / 2; draw(); return [...X.keys()].filter(i => X[i] + .5 < view.x)"
    )
    canvas = browser.find_element(By.ID, "map")
    width, height = canvas.size["width"], canvas.size["height"]
    hand = ActionChains(browser, duration=0).move_to_element_with_offset(canvas, 0, 2 - height // 2).click_and_hold()
    for x, y in ((2 - width // 2, 2 - height // 2), (2 - width // 2, height // 2 - 2), (0, height // 2 - 2)):
        hand = hand.move_to_element_with_offset(canvas, x, y)
    hand.release().perform()
    assert browser.execute_script("return [...mask.keys()].filter(i => mask[i])") == inside
    browser.find_element(By.ID, "download").click()
    wait((tmp_path / "keys.csv").exists)
    keys = browser.execute_script("return chunk(0).then(one => one.key)")
    wanted = {keys[i] for i in inside}
    assert {line.split(",")[0] for line in (tmp_path / "keys.csv").read_text().splitlines()[1:]} == wanted
    root = shutil.copytree(pages["atlas"].parents[1] / "pictures", tmp_path / "set")
    assert exclude(str(root), str(tmp_path / "keys.csv"))[0] == len(inside) > 5


@pytest.mark.parametrize("what", ["domain", "repeated", "size", "typical", "brightness"])
def test_the_map_is_coloured(browser: Any, pages: dict[str, Path], what: str) -> None:
    from selenium.webdriver.common.by import By

    show(browser, pages["atlas"].as_uri(), 1280, 900, "dark")
    wait(lambda: has_pictures(browser))
    plain = seen(browser)
    browser.execute_script(f"by('colour').value = '{what}'; by('colour').onchange()")
    wait(lambda: (seen(browser) != plain).any(axis=2).mean() > 0.1)
    assert browser.find_element(By.ID, "legend").text


@pytest.mark.parametrize(
    ("name", "origin", "clusters"),
    [("searched", "named by the run's head", 12), ("by-kmeans", "by k-means of their features", 7)],
)
def test_atlas_says_whose_its_clusters_are_and_how_many_have_no_images(
    browser: Any, pages: dict[str, Path], name: str, origin: str, clusters: int
) -> None:
    show(browser, pages[name].as_uri(), 1280, 900, "light")
    said = browser.execute_script("return by('about').textContent")
    counts = re.search(rf"; (\d+) clusters {origin}(?:, (\d+) of them without an image)?", said)
    assert counts, said
    named, empty = (int(count or 0) for count in counts.groups())
    assert named == clusters == empty + browser.execute_script("return A.cluster.length")


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_the_command_is_whole_and_copied_and_nothing_is_blank(
    browser: Any, pages: dict[str, Path], width: int, height: int
) -> None:
    from selenium.webdriver.common.by import By

    show(browser, pages["atlas"].as_uri(), width, height, "light")
    command = browser.find_element(By.CSS_SELECTOR, "#detail .command")
    assert browser.execute_script("return arguments[0].scrollWidth <= arguments[0].clientWidth", command)
    copy = browser.find_element(By.CSS_SELECTOR, "#detail .command + button")
    browser.execute_script("arguments[0].scrollIntoView()", copy)
    copy.click()
    browser.execute_script("by('find').focus()")
    wait(lambda: copy.text == "Copied")
    browser.execute_cdp_cmd("Input.dispatchKeyEvent", {"type": "keyDown", "key": "v", "commands": ["paste"]})
    assert browser.execute_script("return by('find').value") == command.text.replace("\n", "")
    heights = browser.execute_script(
        "return [map, by('detail').lastElementChild].map(one => one.getBoundingClientRect().bottom)"
    )
    if width > 960:  # beside each other
        assert abs(heights[0] - heights[1]) < height / 2


def drag(browser: Any, fingers: list[tuple[float, float]], by: list[tuple[float, float]]) -> None:
    """Fingers on the screen, each moved in ten steps."""
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    for step in range(11):
        points = [
            {"x": x + step * dx / 10, "y": y + step * dy / 10, "id": number}
            for number, ((x, y), (dx, dy)) in enumerate(zip(fingers, by, strict=True))
        ]
        touch = {"type": "touchMove" if step else "touchStart", "touchPoints": points}
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", touch)
        time.sleep(0.02)  # as a finger: what comes at one time is one move
    browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    browser.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_the_map_lets_the_page_scroll(browser: Any, pages: dict[str, Path]) -> None:
    """Under a thumb, and under a wheel; two fingers and a wheel with Ctrl zoom the map."""
    show(browser, pages["atlas"].as_uri(), 390, 844, "light")
    y, x = browser.execute_script("const at = map.getBoundingClientRect(); return [at.top + 200, at.left + 150]")
    wheel = {"type": "mouseWheel", "x": x, "y": y, "deltaX": 0}
    drag(browser, [(x, y)], [(0, -150)])
    wait(lambda: browser.execute_script("return scrollY") > 50)
    browser.execute_script("scrollTo(0, 0)")

    def wheeled() -> bool:  # a turn while the drag before still runs out is lost
        browser.execute_cdp_cmd("Input.dispatchMouseEvent", {**wheel, "deltaY": 150})
        return browser.execute_script("return scrollY") > 50

    wait(wheeled)
    assert browser.execute_script("return view.scale === fitting()")
    at_rest = "scrollTo(0, 0); return new Promise(done => setTimeout(() => done(scrollY === 0), 300))"
    wait(lambda: browser.execute_script(at_rest))  # a turn of the wheel runs out slowly
    drag(browser, [(x - 30, y), (x + 30, y)], [(-60, 0), (60, 0)])
    assert browser.execute_script("return view.scale / fitting()") == pytest.approx(3, rel=0.2)
    browser.execute_script("by('whole').click()")
    browser.execute_cdp_cmd("Input.dispatchMouseEvent", {**wheel, "deltaY": -100, "modifiers": 2})
    wait(lambda: browser.execute_script("return view.scale > fitting()"))


def test_a_picture_that_was_searched_for_leads_to_its_cluster(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.by import By

    show(browser, pages["searched"].as_uri(), 1280, 900, "light")
    asked = browser.find_element(By.ID, "asked")
    first = asked.find_element(By.CSS_SELECTOR, ".pictures > .picture")
    wait(lambda: first.get_attribute("title").startswith("image 000003 of cluster "))
    button = asked.find_element(By.CSS_SELECTOR, ".grid-list button")
    browser.execute_script("arguments[0].click()", button)
    assert browser.find_element(By.CSS_SELECTOR, "#detail h2").text == button.text
    show(browser, pages["atlas"].as_uri(), 1280, 900, "light")
    assert not browser.find_element(By.ID, "asked").is_displayed()
