"""The web UI in a real browser, over a real gateway and a real Triton: `make ui-check` keeps the pictures in out/ui."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from accel_lib.course_models import ensure
from accel_lib.service.gateway import serve_gateway
from accel_lib.show.dashboard.app import TABS
from accel_lib.triton.repository import write_model
from accel_lib.triton.server import serve
from tests.rig import LABELS
from tests.tiny import NOISE, TABLE, tiny_artifact

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "out" / "ui"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PATIENCE_MS = 90_000
OPENED_S = []  # from asking for a page to its first button
pytestmark = [
    pytest.mark.triton,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed: make ui-check installs it on Debian"),
]


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The course's embedding model, and two versions of a small one for sentiment, whose traffic can be split."""
    folder = tmp_path_factory.mktemp("ui")
    repository = folder / "models"
    repository.mkdir()
    (repository / "embedding").symlink_to(ensure("embedding").resolve() / "embedding")
    for version, table in ((1, NOISE), (2, TABLE)):
        artifact = tiny_artifact(folder / f"sentiment{version}", table, task="classification", labels=LABELS)
        write_model(repository, "sentiment", artifact, version=version)
    with serve(repository) as triton, serve_gateway(triton) as running:
        yield running


@contextlib.contextmanager
def dashboard(gateway, *roles):
    """A dashboard of its own process with a key of these roles, as `accel ui` starts it."""
    key = gateway.services.auth.keys.create("ui", roles)
    environment = os.environ | {"ACCEL_UI_KEY": key, "ACCEL_UI_TOKEN": "open-sesame"}
    command = [sys.executable, "-m", "accel_lib.cli", "ui", "--gateway", gateway.url, "--port", "0"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    yield re.search(r"http://\S+(?=/\?token)", process.stdout.readline())[0]
    process.terminate()
    process.wait(90)


@pytest.fixture(scope="module")
def address(gateway):
    with dashboard(gateway, "operator", "inference") as running:
        yield running


@pytest.fixture(scope="module")
def browser(pytestconfig):
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()
    waited = ", ".join(f"{seconds:.1f}" for seconds in OPENED_S)
    with pytestconfig.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\nseconds to the first button of each page, the first one cold: {waited}")


@pytest.fixture
def page(browser, address):
    opened = open_page(browser, address, 1280, "light")
    yield opened
    opened.context.close()


def open_page(browser, address, width, theme):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    began = time.monotonic()
    page.goto(f"{address}/?token=open-sesame")
    page.get_by_role("button", name="Try it").wait_for()
    OPENED_S.append(time.monotonic() - began)
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


@pytest.mark.usefixtures("load")
def test_performance_moves_each_second(page):
    open_tab(page, "Performance")
    value = page.locator(".card .value").first
    page.get_by_text("Throughput").wait_for()
    page.wait_for_function("parseFloat(document.querySelector('.accel .card .value').innerText) > 0")
    before = page.locator("svg polyline").first.get_attribute("points")
    moved = "before => document.querySelector('svg polyline').getAttribute('points') != before"
    page.wait_for_function(moved, arg=before)
    assert float(re.match(r"[\d.,]+", value.inner_text())[0].replace(",", "")) > 0


def open_models(page, model):
    open_tab(page, "Models")
    page.get_by_role("row").filter(has_text=model).first.wait_for()
    page.get_by_label("Model", exact=True).select_option(model)


def row(page, model, version):
    return page.get_by_role("row", name=re.compile(rf"^{model} {version} "))


def test_a_model_is_unloaded_refused_with_the_fix_and_loaded_again(page, gateway):
    open_models(page, "sentiment")
    page.get_by_role("button", name="Unload", exact=True).click()
    page.get_by_text("sentiment: unloaded").wait_for()
    row(page, "sentiment", 2).filter(has_text="unavailable").wait_for()
    open_tab(page, "Try it")
    page.get_by_label("Ask for").select_option("sentiment")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("alert").filter(has_text="load the model first").wait_for()
    open_tab(page, "Models")
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("sentiment: loaded").wait_for()
    row(page, "sentiment", 2).filter(has_text="ready").wait_for()
    assert classify(gateway) == "2"


def classify(gateway, user="somebody"):
    """The version that answers."""
    with gateway.client() as client:
        answer = client.post("/v1/classify", json={"model": "sentiment", "input": "w1", "user": user})
    return answer.headers["x-model-version"]


def test_two_versions_share_the_traffic_one_is_promoted_and_rolled_back(page, gateway):
    open_models(page, "sentiment")
    shares = page.get_by_label("Share of each version")
    shares.fill("1: 60, 2: 40")
    shares.press("Tab")
    page.get_by_role("button", name="Split traffic").click()
    page.get_by_text("version 1: 60, version 2: 40").wait_for()
    assert {classify(gateway, f"user {number}") for number in range(60)} == {"1", "2"}
    page.get_by_role("button", name="Promote the largest").click()
    page.get_by_text("live: version 1").wait_for()
    assert classify(gateway) == "1"
    page.get_by_role("button", name="Roll back").click()
    page.get_by_text("live: version 2").wait_for()
    assert classify(gateway) == "2"


def test_a_key_that_may_only_ask_is_offered_nothing_of_an_operator_and_told_why(browser, gateway):
    with dashboard(gateway, "inference") as address:
        page = open_page(browser, address, 1280, "light")
        for tab, names in (("Models", ("Load", "Unload", "Split traffic", "Promote the largest", "Roll back")),
                           ("Batching", ("Apply",))):  # fmt: skip
            open_tab(page, tab)
            page.get_by_text("--role operator").wait_for()
            for name in names:
                assert page.get_by_role("button", name=name, exact=True).is_disabled(), name
        open_tab(page, "Try it")
        page.get_by_role("button", name="Ask").click()
        page.get_by_text("Nearest first").wait_for()
        page.context.close()


@pytest.mark.usefixtures("load")
def test_a_batching_setting_is_predicted_and_applied(page, gateway):
    open_tab(page, "Batching")
    page.get_by_text("simulated", exact=True).wait_for()
    page.get_by_label("Queue delay").fill("2000")
    page.get_by_label("Queue delay").press("Tab")
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("queue delay 2,000 µs").wait_for()
    assert gateway.services.supervisor.server.config("embedding").max_queue_delay_us == 2000


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


LOADED = {
    "Try it": "text=Nearest first",
    "Chat": "text=Write something, and press Send.",
    "Performance": "svg[aria-label^=Throughput] polyline",
    "Models": "tr:has-text('embedding')",
    "Batching": "text=simulated",
    "Health": "text=The service is",
}
HEIGHT = "document.querySelector('.accel').scrollHeight"  # the page scrolls inside of the document


@pytest.mark.usefixtures("load")
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_tab_fits_the_window(browser, address, width, theme):
    PICTURES.mkdir(parents=True, exist_ok=True)
    page = open_page(browser, address, width, theme)
    page.get_by_role("button", name="Ask").click()
    for tab in TABS:
        open_tab(page, tab)
        page.locator(LOADED[tab]).first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= width, tab
        name = f"{tab.lower().replace(' ', '_')}_{width}_{theme}.png"
        page.set_viewport_size({"width": width, "height": max(900, page.evaluate(HEIGHT))})
        page.screenshot(path=PICTURES / name)
        page.set_viewport_size({"width": width, "height": 900})
    page.context.close()
