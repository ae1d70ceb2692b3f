from html.parser import HTMLParser

from bloodjax.corruptions import alexnet_reference
from bloodjax.evaluation import robustness
from bloodjax.report import corruptions_page

FACTS = {
    "n": 1234,
    "step": 7,
    "seed": 0,
    "tta": "none",
    "baseline": {"source": alexnet_reference.SOURCE, "image_size": 224},
}


def page(image_size=224, **errors):
    result = FACTS | {"image_size": image_size} | robustness.relative(0.05, errors)
    return corruptions_page.build("test <b>", result)


def test_it_shows_each_error_and_needs_no_other_file():
    html = page(bubble=dict(enumerate((0.1, 0.2, 0.3, 0.4, 0.5), 1)), dust={2: 0.25})
    assert "30.0\N{NO-BREAK SPACE}%" in html  # bubble's mean
    assert f"{0.3 / alexnet_reference.CORRUPTED['bubble']:.3f}" in html
    assert "test &lt;b&gt;" in html
    assert "1,234 images" in html
    assert 'aria-label="balanced error by severity, a row each for bubble, dust"' in html
    sources = []

    class Parser(HTMLParser):
        def handle_starttag(self, tag, attributes):
            sources.extend(v for k, v in attributes if k in ("src", "href") and v[0] != "#")

    Parser().feed(html)
    assert not sources


def test_images_of_another_size_than_the_benchmark_s_are_said_to_be():
    note = "affect these images of 96 × 96 differently"
    assert note in page(image_size=96, dust={1: 0.1})
    assert note not in page(image_size=224, dust={1: 0.1})
