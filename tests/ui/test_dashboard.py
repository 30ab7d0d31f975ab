"""The web UI in a real browser, over a real gateway and a real Triton: `make ui-check` keeps the pictures in out/ui."""

import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from accel_lib.prepare import ensure
from accel_lib.service.gateway import serve_gateway
from accel_lib.show.dashboard import TABS
from accel_lib.triton.server import serve

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "out" / "ui"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_MS = 90_000
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed: make ui-check installs it on Debian"),
]


@pytest.fixture(scope="module")
def gateway():
    with serve(ensure("embedding"), models=["embedding"]) as triton, serve_gateway(triton) as running:
        yield running


@pytest.fixture(scope="module")
def address(gateway):
    """A dashboard of its own process, as `accel ui` starts it."""
    environment = os.environ | {"ACCEL_UI_KEY": gateway.key, "ACCEL_UI_TOKEN": "open-sesame"}
    command = [sys.executable, "-m", "accel_lib.cli", "ui", "--gateway", gateway.url, "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    yield re.search(r"http://\S+(?=/\?token)", process.stdout.readline())[0]
    process.terminate()
    process.wait(90)


@pytest.fixture(scope="module")
def browser():
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser, address):
    opened = open_page(browser, address, 1280, "light")
    yield opened
    opened.context.close()


def open_page(browser, address, width, theme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(f"{address}/?token=open-sesame")
    page.get_by_role("button", name="Try it").wait_for()
    return page


def open_tab(page, name):
    page.get_by_role("button", name=name, exact=True).click()


@pytest.fixture
def load(gateway):
    """Some requests a second while a test looks."""
    over = threading.Event()

    def ask():
        with gateway.client() as client:
            while not over.wait(0.03):
                client.post("/v1/embeddings", json={"model": "embedding", "input": "a cat on a mat"})

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


def test_nothing_is_shown_without_the_token(browser, address):
    page = browser.new_page()
    page.goto(address)
    assert page.get_by_role("button", name="Try it").count() == 0
    page.close()


def test_a_text_finds_its_nearest_sentences_and_where_the_time_went(page):
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("Nearest first").wait_for()
    first = page.locator("tbody tr").first.inner_text()
    assert "cat" in first.lower() or "kitten" in first.lower()
    assert "ms in all" in page.locator(".bar").get_attribute("aria-label")


def test_an_error_of_the_gateway_is_shown_with_its_fix(page):
    page.get_by_label("Ask for").select_option("sentiment")
    page.get_by_role("button", name="Ask").click()
    alert = page.get_by_role("alert")
    alert.wait_for()
    assert "sentiment" in alert.inner_text()


@pytest.mark.usefixtures("load")
def test_performance_moves_each_second(page):
    open_tab(page, "Performance")
    value = page.locator(".card .value").first
    page.get_by_text("Throughput").wait_for()
    page.wait_for_function("parseFloat(document.querySelector('.accel .card .value').innerText) > 0")
    before = page.locator("svg polyline").first.get_attribute("points")
    moved = "before => document.querySelector('svg polyline').getAttribute('points') != before"
    page.wait_for_function(moved, arg=before)
    assert float(value.inner_text().split()[0].replace(",", "").removesuffix("a")) > 0


def test_models_and_versions_are_listed(page):
    open_tab(page, "Models")
    row = page.get_by_role("row").filter(has_text="embedding").first
    row.wait_for()
    assert "ready" in row.inner_text()


@pytest.mark.usefixtures("load")
def test_a_batching_setting_is_applied(page, gateway):
    open_tab(page, "Batching")
    page.get_by_text("Batch sizes").wait_for()
    page.get_by_label("Queue delay").fill("2000")
    page.get_by_label("Queue delay").press("Tab")
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("queue delay 2,000 µs").wait_for()
    assert gateway.app.state.supervisor.server.config("embedding").max_queue_delay_us == 2000


def test_health_names_every_component_and_what_the_doctor_saw(page):
    open_tab(page, "Health")
    page.get_by_text("The service is").wait_for()
    for word in ("triton", "models", "Doctor"):
        assert page.get_by_text(word).count()


def test_every_tab_is_reached_with_the_keyboard(page):
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == "Health":
            break
    page.keyboard.press("Enter")
    page.get_by_text("The service is").wait_for()


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_tab_fits_the_window(browser, address, width, theme):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page = open_page(browser, address, width, theme)
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("Nearest first").wait_for()
    for tab in TABS:
        open_tab(page, tab)
        page.wait_for_timeout(4000 if tab == "Performance" else 1500)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        name = f"{tab.lower().replace(' ', '_')}_{width}_{theme}.png"
        page.screenshot(path=PICTURES / name, full_page=True)
    page.context.close()
