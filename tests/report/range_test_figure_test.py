import io

import numpy as np
import pytest
from PIL import Image

from bloodjax.report import plots, run_content, run_page

RATES = np.geomspace(1e-6, 1, 100)
FOUND = {
    "phase": "head",
    "rates": tuple(RATES.tolist()),
    "losses": tuple((2 - RATES**0.2 + 5 * RATES).tolist()),
    "smoothed": tuple((2 - RATES**0.2 + 5 * RATES).tolist()),
    "highest": 0.05,
    "learning_rate": 0.005,
}
EPOCH = {
    "step": 7,
    "phase": "head",
    "train": {"loss": 1.0, "accuracy": 0.5},
    "learning_rate": 0.005,
    "seconds": 1.0,
}


@pytest.mark.parametrize("tests", [{}, {"head": FOUND}])
def test_the_page_shows_the_range_test_of_each_phase(tests):
    content = run_content.RunContent(
        name="run", config={}, history=[EPOCH], evaluations={}, range_tests=tests
    )
    page = run_page.build(content)
    assert ("Learning rate: range tests" in page) == bool(tests)
    assert ("<h3>Head: 0.005</h3>" in page) == bool(tests)
    assert page.count("loss over the learning rate in the range test of head") == len(tests)


def test_the_figure_is_a_picture_too():
    image = Image.open(io.BytesIO(plots.range_test_png(FOUND)))
    assert (image.format, image.size) == ("PNG", (624, 408))
    assert np.asarray(image.convert("L")).std() > 10
