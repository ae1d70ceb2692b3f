import warnings

import numpy as np

from bloodjax.report import image_sheet

from .examples import LONG_NAME, ODD_NAMES


def test_titles_are_neither_formulas_nor_boxes():
    image = np.zeros((8, 8, 3), np.uint8)
    titles = (*ODD_NAMES, LONG_NAME, f"0.50 {LONG_NAME}\n0.50 嗜", "$\\frac{$", "")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for title in titles:
            assert image_sheet.render([[image]], [[title]]).startswith(b"\x89PNG")
