import json
from html.parser import HTMLParser

import pytest

from bloodjax.errors import UserError
from bloodjax.report import plan_page

PLAN = {
    "network": "simple_cnn <b>",
    "device": "v5e-8",
    "fits": True,
    "memory_bytes": 2**34,
    "peak_bytes": 3 * 2**30,
    "estimated_step_seconds": 0.0125,
    "images_per_second": 5120.0,
    "largest_batch_size": 12_800,
    "largest_batch_size_is": "compiled",
    "notes": ["Nothing was measured."],
}
OPERATION = {
    "operation": "fusion.7",
    "cycles": None,
    "main_bytes": 123_456,
    "shape": "bf16[8,4]",
    "op_name": "jit(train_steps)/optimizer/mul",
    "source": "training/optim.py:12",
}
SECTION = {
    "name": "finetune: training step",
    "facts": ["Peak memory per chip: 3.00 GiB."],
    "unit": "M cycles",
    "kinds": [("convolution, forward", 1.5, 0.75), ("optimiser", 0.5, 0.25)],
    "stages": [("forward", 1.5, 0.75)],
    "operations": [OPERATION],
}
WORDS = {"title": "simple_cnn on v5e-8", "memory": ["It fits."], "times": []}


def test_the_page_shows_the_figures_and_needs_no_other_file():
    page = plan_page.build(PLAN, [SECTION], WORDS)
    for text in ("3.00", "12.50", "5,120", "12,800", "Nothing was measured.", "123,456", "1.500"):
        assert text in page
    assert "simple_cnn &lt;b&gt;" in page
    assert "75.0\N{NO-BREAK SPACE}%" in page
    sources = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(v for k, v in attributes if k in ("src", "href") and v[0] != "#")

    Parser().feed(page)
    assert not sources


def test_what_the_compiler_does_not_estimate_is_left_out():
    plan = PLAN | {"fits": False, "estimated_step_seconds": None, "largest_batch_size": None}
    page = plan_page.build(plan, [SECTION | {"kinds": [], "operations": ()}], WORDS)
    assert "Step time" not in page
    assert "Largest batch" not in page
    assert "Kind of layer" not in page


def test_the_plan_and_its_page_are_written_beside_each_other(tmp_path):
    path = tmp_path / "plans" / "plan.json"
    plan_page.write(PLAN, "<p>page</p>", path)
    assert json.loads(path.read_text("utf-8")) == PLAN
    assert path.with_suffix(".html").read_text("utf-8") == "<p>page</p>"
    with pytest.raises(UserError):
        plan_page.write(PLAN, "", path / "below" / "plan.json")
