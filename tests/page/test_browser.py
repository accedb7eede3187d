"""The page of `clipskip serve`, driven in Chromium as a user drives it: `make test-page`. Makes docs/serve-page.png.

What the page sends is compared with tests/runtime/serve/data/page_requests.json, which the suite replays without a
browser; CLIPSKIP_RECORD=1 writes that file anew.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from safetensors.numpy import save_file

import clipskip
from clipskip.engines.store import read_manifest

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install clipskip[page]")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with chromedriver is on the PATH")
ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "runtime" / "serve" / "data" / "page_requests.json"
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--force-prefers-reduced-motion",
]
LISTEN = """
window.sent = [];
const plain = window.fetch;
window.fetch = (path, options = {}) => {
  const body = typeof options.body === 'string' ? options.body : options.body ? 'FILE' : null;
  window.sent.push({path, method: options.method ?? 'GET', headers: options.headers ?? {}, body});
  return plain(path, options);
};
"""


def serving(store, *options, **environment):
    """A process that serves, and its address."""
    command = [sys.executable, "-m", "clipskip", "serve", str(store), "--port", "0", *map(str, options)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    for line in process.stderr:
        if line.startswith("serving "):
            return process, line.split()[-1]
    raise AssertionError("it did not begin to serve")


def ended(process):
    process.terminate()
    process.communicate(timeout=120)


@pytest.fixture(scope="module")
def address(sample_store):
    process, address = serving(sample_store)
    yield address
    ended(process)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tmp_path_factory.mktemp("profile")
    for flag in (*FLAGS, "--window-size=1200,900", f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page in a browser, and what it sent."""

    def __init__(self, browser, address):
        self.browser = browser
        browser.get(address)
        self.until(lambda: self["model"].get_attribute("value"))
        browser.execute_script(LISTEN)

    def __getitem__(self, name):
        return self.browser.find_element(By.ID, name)

    def until(self, true, seconds=60):
        return WebDriverWait(self.browser, seconds, 0.05).until(lambda _: true())

    def put(self, **values):
        """Give fields their values as a user's typing does."""
        script = "const e = document.getElementById(arguments[0]); e.value = arguments[1]; e.oninput?.();"
        for name, value in values.items():
            self.browser.execute_script(script, name, str(value))

    def cells(self):
        return self.browser.find_elements(By.CSS_SELECTOR, "td button")

    def done(self, seconds=120):
        self.until(lambda: not self["making"].is_displayed(), seconds)
        assert not self["error"].is_displayed(), self["error"].text

    def picture(self, cell):
        """The bytes that Save would write."""
        source = cell.find_element(By.TAG_NAME, "img").get_attribute("src")
        return base64.b64decode(source.removeprefix("data:image/png;base64,"))

    def sent(self):
        return self.browser.execute_script("return window.sent.splice(0)")


@pytest.fixture
def page(browser, address):
    page = Page(browser, address)
    yield page
    problems = [
        line for line in browser.get_log("browser") if line["level"] == "SEVERE" and "422" not in line["message"]
    ]
    assert not problems


def same(sent, name):
    """What was sent is what the suite replays; the id of a request does not count."""
    kept = json.loads(RECORDED.read_text()) if RECORDED.exists() else {}
    fixed = json.loads(re.sub(r"/v1/generate/[0-9a-f]{32}", "/v1/generate/ID", json.dumps(sent)))
    if os.environ.get("CLIPSKIP_RECORD"):
        RECORDED.parent.mkdir(exist_ok=True)
        RECORDED.write_text(json.dumps(kept | {name: fixed}, indent=1, sort_keys=True) + "\n")
    else:
        assert fixed == kept[name]


SMALL = {"width": 64, "height": 64, "steps": 4, "seed": 7}


def test_a_picture_is_made_with_progress_and_its_png_has_the_request(page):
    page.put(prompt="a red circle", clip_skip=2, cfg=5, **SMALL)
    page["generate"].click()
    page.done()
    (cell,) = page.cells()
    request = clipskip.read_ledger(page.picture(cell)).request
    assert (request.prompt, request.clip_skip, request.cfg, request.seed, request.steps) == ("a red circle", 2, 5, 7, 4)
    same(page.sent(), "a picture")


def test_seeds_that_javascript_cannot_count_arrive_exactly(page):
    page.put(prompt="a red circle", **SMALL | {"seed": 2**64 - 1, "steps": 1})
    page["generate"].click()
    page.done()
    (cell,) = page.cells()
    assert clipskip.read_ledger(page.picture(cell)).request.seed == 2**64 - 1
    cell.click()
    page["repeat"].click()
    assert page["seed"].get_attribute("value") == str(2**64 - 1)
    same(page.sent(), "a large seed")


def test_the_strip_is_one_click_and_its_cells_open_by_the_keyboard_and_are_taken_back_into_the_form(page):
    page.put(prompt="a red circle", depths="1,2,7,13", **SMALL)
    page["strip"].click()
    page.done()
    cells = page.cells()
    skips = [clipskip.read_ledger(page.picture(cell)).request.clip_skip for cell in cells]
    assert skips == [1, 2, 7, 13]
    same(page.sent(), "a strip")
    cells[1].send_keys(Keys.ENTER)
    dialog = page.browser.find_element(By.TAG_NAME, "dialog")
    page.until(dialog.is_displayed)
    dialog.send_keys(Keys.ARROW_RIGHT)
    assert "7" in dialog.find_element(By.TAG_NAME, "h2").text
    page["repeat"].click()
    assert page["clip_skip"].get_attribute("value") == "7"
    assert page["seed"].get_attribute("value") == "7"
    assert page["lock"].is_selected()


def test_depth_by_guidance_is_a_table_and_the_whole_sheet_can_be_saved(page):
    page.put(prompt="a red circle", depths="1,13", guidances="1,7", **SMALL)
    page["square"].click()
    page.done()
    assert [cell.get_attribute("data-place") for cell in page.cells()] == ["1,1,1", "2,1,1", "1,2,1", "2,2,1"]
    assert page["whole"].get_attribute("href").startswith("data:image/png;base64,")
    same(page.sent(), "depth by guidance")


def test_a_dropped_picture_fills_the_form_and_says_what_cannot_be_honoured(page, tmp_path):
    image = PIL.Image.new("RGB", (8, 8))
    text = "a blue star\nNegative prompt: dull\nSteps: 9, Sampler: Euler a, CFG scale: 3, Seed: 5, Size: 64x64, "
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("parameters", text + "Clip skip: 3, Refiner: other [12345678], Eta: 0.5")
    image.save(tmp_path / "old.png", pnginfo=info)
    page["file"].send_keys(str(tmp_path / "old.png"))
    page.until(lambda: page["told"].is_displayed())
    values = {name: page[name].get_attribute("value") for name in ("prompt", "negative_prompt", "clip_skip", "steps")}
    assert values == {"prompt": "a blue star", "negative_prompt": "dull", "clip_skip": "3", "steps": "9"}
    assert page["sampler"].get_attribute("value") == "Euler a"
    assert json.loads(page["more"].get_attribute("value"))["eta"] == 0.5
    assert "Refiner" in page["told"].text
    same(page.sent(), "a dropped picture")


def test_a_file_without_settings_leaves_nothing_of_the_one_before(page, tmp_path):
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("parameters", "a star\nSteps: 2, Sampler: Euler, CFG scale: 3, Seed: 5, Size: 64x64")
    PIL.Image.new("RGB", (8, 8)).save(tmp_path / "old.png", pnginfo=info)
    (tmp_path / "none.png").write_bytes(b"no picture")
    page["file"].send_keys(str(tmp_path / "old.png"))
    page.until(lambda: page["told"].is_displayed())
    page["file"].send_keys(str(tmp_path / "none.png"))
    page.until(lambda: page["error"].is_displayed())
    assert not page["told"].is_displayed()


def test_a_long_request_shows_its_preview_and_is_cancelled(page):
    page.put(prompt="a red circle", width=256, height=256, steps=900, seed=1, sampler="Euler")
    page["generate"].click()
    page.until(lambda: page["live"].is_displayed())
    assert "calls" in page["state"].text
    page["cancel"].click()
    page.until(lambda: not page["making"].is_displayed(), 30)
    assert (page["notes"].text, page["error"].is_displayed()) == ("cancelled", False)
    same(page.sent(), "a cancelled picture")


def test_what_is_refused_is_said_with_its_field_and_the_form_is_kept(page):
    page.put(prompt="a red circle", width=63)
    page.browser.execute_script("start('picture')")
    page.until(lambda: page["error"].is_displayed())
    assert "width" in page["error"].text
    assert page["prompt"].get_attribute("value") == "a red circle"


def test_with_a_token_the_page_asks_for_it(browser, sample_store):
    process, address = serving(sample_store, CLIPSKIP_TOKEN="se:cret")
    try:
        browser.get(address)
        entry = browser.find_element(By.ID, "secret")
        WebDriverWait(browser, 30).until(lambda _: entry.is_displayed())
        error = browser.find_element(By.ID, "error")
        for wrong, said in (("wrong", True), ("se:cret", False)):
            entry.clear()
            entry.send_keys(wrong, Keys.ENTER)
            WebDriverWait(browser, 30).until(lambda _, said=said: ("what was sent is wrong" in error.text) == said)
        model = browser.find_element(By.ID, "model")
        WebDriverWait(browser, 30).until(lambda _: model.get_attribute("value"))
        browser.execute_script("sessionStorage.clear()")
        browser.get_log("browser")
    finally:
        ended(process)


def test_a_lora_and_an_embedding_come_into_the_prompt_by_the_keyboard_alone(browser, sample_store, tmp_path):
    vectors = np.ones((1, read_manifest(sample_store).model.width), np.float32)
    for name, told in (("Ink", {"ss_clip_skip": "2"}), ("moody-sky", None)):
        (tmp_path / name).mkdir()
        save_file({"emb_params": vectors}, tmp_path / name / f"{name}.safetensors", told)
    options = ("--loras", tmp_path / "Ink", "--embeddings", tmp_path / "moody-sky")
    process, address = serving(sample_store, *options)
    try:
        page = Page(browser, address)
        page.until(lambda: page["adapters"].is_displayed())
        page["prompt"].send_keys("a ring,  at night", *[Keys.ARROW_LEFT] * 9, Keys.TAB)
        focused = browser.switch_to.active_element
        assert focused == page["adapter"]
        assert "Ink (trained at clip skip 2)" in focused.text
        focused.send_keys(Keys.TAB)
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        assert page["prompt"].get_attribute("value") == "a ring, <lora:Ink:1> at night"
        assert browser.switch_to.active_element == page["prompt"]
        page["adapter"].send_keys("moo", Keys.TAB)
        browser.switch_to.active_element.send_keys(Keys.SPACE)
        assert page["prompt"].get_attribute("value") == "a ring, <lora:Ink:1> moody-sky at night"
        if folder := os.environ.get("CLIPSKIP_SCREENSHOTS"):
            browser.save_screenshot(f"{folder}/adapters.png")
    finally:
        ended(process)


def test_nothing_is_wider_than_a_phone_and_the_documents_picture_is_made(page):
    screen = {"deviceScaleFactor": 1, "mobile": False}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 1200, "height": 900, **screen})
    page.put(
        prompt="a large red circle on a green background", steps=12, seed=2, depths="1,2,7,11,13", guidances="1,3,7,12"
    )
    page["square"].click()
    page.done(300)
    target = ROOT / "docs" / "serve-page.png"
    page.browser.save_screenshot(str(target))
    PIL.Image.open(target).convert("RGB").quantize(128).save(target, optimize=True)
    assert target.stat().st_size < 300_000
    screen["mobile"] = True
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 390, "height": 844, **screen})
    assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 390
    if folder := os.environ.get("CLIPSKIP_SCREENSHOTS"):
        page.browser.save_screenshot(f"{folder}/phone.png")
    page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
