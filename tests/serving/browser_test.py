"""The page in a browser: Chromium, driven by Playwright."""

import csv
import pathlib
import shutil
import threading

import numpy as np
import pytest

from bloodjax.data import images
from bloodjax.data.synthetic import render
from bloodjax.evaluation.classifier import Classifier
from bloodjax.serving.limits import Limits
from bloodjax.training import factory

app_lib = pytest.importorskip("bloodjax.serving.app", reason="needs the extra [serve]")
server = pytest.importorskip("bloodjax.serving.server")
service = pytest.importorskip("bloodjax.serving.service")
playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")

pytestmark = pytest.mark.full

HOSTILE = "<img src=x onerror=document.title='taken'>"


@pytest.fixture(scope="module")
def train():
    return render.render_dataset(48, 32, seed=3)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


@pytest.fixture(scope="module")
def url(make_config, train, workdir):
    """A server of a network with random weights, whose training data are `train`."""
    config, classes = make_config(), (*render.CLASSES[:7], HOSTILE)
    model = Classifier(config, classes, factory.variables(config, len(classes)), 0)
    patch = pytest.MonkeyPatch()
    patch.setattr(service.neighbours.saved_splits, "recall", lambda *args, **kwargs: train)
    answering = service.Service(model, [workdir], Limits(file_bytes=300_000))
    bound, started = server.bind("127.0.0.1", 0), threading.Event()
    running = server.Server(app_lib.create(answering), started.set)
    running.start(bound)
    answering.start()
    assert started.wait(30)
    yield server.url(bound)
    running.stop()
    answering.close()
    patch.undo()
    bound.close()


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    with playwright.sync_playwright() as driver:
        if path is None and not pathlib.Path(driver.chromium.executable_path).exists():
            pytest.skip("needs Chromium")
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser, url):
    """The page, whose scripts may not fail and which may ask no other server."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    opened, found = context.new_page(), []
    opened.on("pageerror", lambda error: found.append(str(error)))
    opened.on("request", lambda request: found.append(request.url) if _leaves(request, url) else 0)
    opened.goto(url)
    opened.wait_for_selector("#summary:not(:empty)")
    yield opened
    assert not found
    context.close()


def _leaves(request, url):
    return not request.url.startswith((url, f"blob:{url}", "data:"))


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """A folder of 200 images, a broken one, and a file that is none."""
    folder = tmp_path_factory.mktemp("slide") / "cells"
    folder.mkdir()
    for i, image in enumerate(render.render_dataset(200, 32, seed=5).images):
        (folder / f"cell {i:03}.png").write_bytes(images.encode_png(image))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno image")
    (folder / "notes.txt").write_text("no image")
    return folder


def drop(page, name, data):
    """Drops a file onto the page."""
    script = """([name, data]) => {
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array(data)], name, {type: "image/png"}));
      for (const kind of ["dragover", "drop"]) {
        document.body.dispatchEvent(new DragEvent(kind, {dataTransfer: transfer, bubbles: true}));
      }
    }"""
    page.evaluate(script, [name, list(data)])


def test_a_dropped_image(page, train):
    drop(page, "one.png", images.encode_png(train.images[5]))
    page.wait_for_selector(".verdict .class")
    assert page.inner_text("#detail-name") == "one.png"
    rows = page.locator(".bars tr")
    assert rows.count() == 8
    assert rows.first.locator("th").inner_text() == page.inner_text(".verdict .class")
    page.wait_for_selector("#nearest-cells li", timeout=60_000)
    assert page.locator("#nearest-cells li").count() == 6
    assert page.locator("#nearest-cells li span").first.inner_text() == "similarity 1.00"
    assert page.locator("#nearest-cells img").first.evaluate("e => e.naturalWidth") == 32

    page.click("#heat-toggle")
    page.wait_for_selector("#heat:not([hidden])")
    first = page.get_attribute("#heat", "src")
    assert page.locator("#heat").evaluate("e => e.decode().then(() => e.naturalWidth)") == 32
    page.select_option("#heat-class", HOSTILE)
    page.wait_for_selector(f'#heat:not([src="{first}"])')
    assert page.inner_text("#caption").startswith(f"What speaks for {HOSTILE}")
    assert page.get_attribute("#heat-toggle", "aria-pressed") == "true"
    page.click("#heat-toggle")
    assert page.locator("#heat").is_hidden()


def test_names_and_classes_are_texts(page, train, workdir):
    drop(page, HOSTILE, images.encode_png(train.images[0]))
    page.wait_for_selector(".verdict .class")
    assert page.inner_text("#detail-name") == HOSTILE
    assert HOSTILE in page.locator(".bars th").all_inner_texts()
    assert page.title() == f"{workdir.name} – bloodjax"


def test_a_broken_file_and_one_that_is_too_large(page, train):
    drop(page, "broken.png", b"no image")
    page.wait_for_selector(".verdict .word.bad")
    assert "unknown image format" in page.inner_text("#verdict")
    drop(page, "large.png", bytes(300_001))
    drop(page, "good.png", images.encode_png(train.images[0]))
    page.wait_for_selector("#list li:nth-child(3) .share:not(:empty)")
    assert page.inner_text("#tally") == "1 not to refer2 not read"
    page.locator("#list button").nth(1).click()
    assert "larger than the limit of 0.3 MB" in page.inner_text("#verdict")


def test_a_folder_of_200(page, cells, tmp_path):
    seen = page.evaluate_handle("""() => {
      const values = [];
      new MutationObserver(() => values.push(document.getElementById("bar").value))
        .observe(document.getElementById("bar"), {attributes: true});
      return values;
    }""")
    page.set_input_files("#folder", cells)
    page.wait_for_selector("#tally:not(:empty)")
    page.wait_for_selector("#progress", state="hidden", timeout=60_000)
    values = seen.json_value()
    assert values == sorted(values)
    assert len(set(values)) > 10
    assert page.inner_text("#results-title") == "201 images"
    assert "1 not read" in page.inner_text("#tally")
    page.select_option("#show", "error")
    assert page.locator("#list li:not([hidden])").count() == 1
    page.select_option("#show", "all")
    page.select_option("#order", "doubtful")
    assert page.locator("#list b").first.inner_text() == "Not read"

    with page.expect_download() as download:
        page.click("#csv")
    download.value.save_as(tmp_path / "predictions.csv")
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        table = {row["name"]: row for row in csv.DictReader(file)}
    assert list(table["cells/broken.png"].values())[1:4] == ["", "", "1"]
    assert table["cells/broken.png"]["why"].startswith("not read: ")
    row = table["cells/cell 000.png"]
    assert list(row) == [
        "name",
        "predicted",
        "confidence",
        "refer",
        "why",
        *render.CLASSES[:7],
        HOSTILE,
    ]
    numbers = np.array([float(row[name]) for name in list(row)[5:]])
    assert numbers.sum() == pytest.approx(1, abs=1e-5)
    assert float(row["confidence"]) == numbers.max()
    page.click("#clear")
    assert page.locator("#list li").count() == 0
    assert page.locator("#work").is_hidden()


def test_cancelling(page, cells):
    page.route("**/api/predict", lambda route: None)  # never answered
    page.set_input_files("#folder", cells)
    page.click("#cancel")
    page.wait_for_selector("#progress", state="hidden")
    assert page.inner_text("#status") == "Cancelled; 0 images answered"
    page.unroute("**/api/predict")
    page.set_input_files("#files", cells / "cell 001.png")
    page.wait_for_selector(".verdict .class")


def test_a_phone_and_the_keyboard(page, cells):
    page.set_viewport_size({"width": 360, "height": 740})
    page.set_input_files("#files", cells / "cell 009.png")
    page.wait_for_selector(".verdict .class")
    page.click("#clear")
    page.set_input_files("#files", cells / "cell 000.png")
    page.wait_for_selector(".verdict .class")
    page.set_input_files("#files", [cells / f"cell {i:03}.png" for i in range(1, 5)])
    page.wait_for_selector("#list li:nth-child(5) .share:not(:empty)")
    page.wait_for_selector("#progress", state="hidden")
    assert page.locator("#detail").is_hidden()
    page.locator("#list button").first.focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail", state="visible")
    assert page.inner_text("#detail-name") == "cell 001.png"
    assert page.evaluate("document.activeElement.id") == "detail-name"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.keyboard.press("Escape")
    assert page.locator("#detail").is_hidden()
    assert page.evaluate("document.activeElement.textContent").endswith("cell 001.png")


def test_the_description_of_the_endpoint(page, url):
    page.goto(f"{url}docs")
    page.wait_for_selector("#paths section")
    assert "/api/predict" in page.inner_text("#paths")
    assert page.inner_text("#curl").endswith(f"{url}api/predict")
