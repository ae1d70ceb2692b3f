import pytest

from bloodjax.report import labels


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["basophil", "$x$"], ["basophil", "$x$"]),
        ([" a \n b\t", "\x1b[1m"], ["a b", "[1m"]),
        (["\udcff", ""], ["\\udcff", "?"]),
        (["a", "a "], ["a (1)", "a (2)"]),
        (["x" * 30], ["x" * 30]),
        (["x" * 40 + " tail"], ["x" * 20 + "…xxxx tail"]),
        (["嗜" * 15], ["嗜" * 15]),
        (["嗜" * 16], ["嗜" * 10 + "…" + "嗜" * 4]),
    ],
)
def test_labels_are_short_and_distinct(names, expected):
    assert labels.shortened(names) == expected


def test_long_names_that_differ_anywhere_stay_distinct():
    base = "atypical reactive lymphocyte with azurophilic granules " * 3
    names = [base[:i] + "#" + base[i + 1 :] for i in range(0, len(base), 7)]
    short = labels.shortened(names)
    assert len(set(short)) == len(short)
    assert max(map(labels.columns, short)) <= labels.LONGEST + len(" (99)")


def test_columns():
    assert [labels.columns(text) for text in ("ab", "嗜", "🩸", "e\u0301", "")] == [2, 2, 2, 1, 0]
