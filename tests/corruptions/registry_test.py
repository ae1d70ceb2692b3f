import subprocess
import sys

import numpy as np
import pytest

from bloodjax.corruptions import registry
from bloodjax.data.synthetic import render
from bloodjax.errors import UserError


@pytest.fixture(scope="module")
def cells():
    return render.render_dataset(8, 96, seed=1).images


def distorted(image, name, severity, seed=0, image_name="a.png"):
    return registry.distort(image, name, severity, seed=seed, image_name=image_name)


@pytest.mark.parametrize("name", registry.DISTORTIONS)
def test_a_worse_severity_changes_an_image_more_and_no_severity_touches_its_source(name, cells):
    before = cells.copy()
    changes = []
    for severity in range(1, 6):
        results = [
            distorted(image, name, severity, image_name=f"{i}.png") for i, image in enumerate(cells)
        ]
        assert all(r.shape == (96, 96, 3) and r.dtype == np.uint8 for r in results)
        changes.append(np.mean(np.abs(np.stack(results).astype(float) - cells)))
    np.testing.assert_array_equal(cells, before)
    assert changes[0] > 0
    # The position of spots and bubbles is random, but the change grows on average over the cells.
    assert changes[4] > 1.2 * changes[0]


@pytest.mark.parametrize("shape", [(16, 16), (28, 28), (33, 47), (64, 64), (224, 224)])
@pytest.mark.parametrize("name", registry.DISTORTIONS)
def test_images_of_any_size(name, shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for severity in (1, 5):
        for image_name in "abc":
            assert distorted(image, name, severity, image_name=image_name).shape == image.shape


@pytest.mark.parametrize("name", ["motion_blur", "stain_deposit", "bubble", "dust", "shot_noise"])
def test_randomness_follows_seed_image_and_nothing_else(name, cells):
    first = distorted(cells[0], name, 3)
    distorted(cells[1], name, 2, image_name="b.png")
    np.testing.assert_array_equal(distorted(cells[0], name, 3), first)
    assert (distorted(cells[0], name, 3, seed=1) != first).any()
    assert (distorted(cells[0], name, 3, image_name="b.png") != first).any()


def test_a_name_that_is_not_utf_8_has_random_numbers_too(cells):
    choice = registry.parse("all", "x")
    for name in ("caf\udce9.png", "\ud800.png"):  # as `os.fsdecode` and JSON have them
        out = registry.distort(cells[0], "bubble", 3, seed=0, image_name=name)
        assert (out != registry.distort(cells[0], "bubble", 3, seed=0, image_name="a.png")).any()
        assert registry.sample(choice, seed=0, image_name=name)[0] in choice


def test_another_process_distorts_alike(cells):
    code = (
        "from bloodjax.data.synthetic import render\n"
        "from bloodjax.corruptions import registry\n"
        "image = render.render_dataset(8, 96, seed=1).images[0]\n"
        "out = registry.distort(image, 'bubble', 3, seed=0, image_name='a.png')\n"
        "choice = registry.parse('everything', '')\n"
        "print(out.tobytes().hex(), registry.sample(choice, seed=0, image_name='a.png'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    pixels, sampled = done.stdout.strip().split(" ", 1)
    assert bytes.fromhex(pixels) == distorted(cells[0], "bubble", 3).tobytes()
    choice = registry.parse("everything", "")
    assert sampled == repr(registry.sample(choice, seed=0, image_name="a.png"))


def test_an_image_s_sample_is_spread_evenly():
    choice = registry.parse("all:1-5", "x")
    draws = [registry.sample(choice, seed=0, image_name=f"{i}.png") for i in range(1100)]
    names = [name for name, _ in draws]
    assert all(60 <= names.count(name) <= 140 for name in registry.GROUPS["all"])
    severities = [severity for _, severity in draws]
    assert all(160 <= severities.count(s) <= 280 for s in range(1, 6))


def test_groups():
    groups = registry.GROUPS
    assert len(groups["all"]) == 11
    assert set(groups["all"]).isdisjoint(groups["extra"])
    assert groups["everything"] == groups["all"] + groups["extra"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bubble,pixelate", {"pixelate": (1, 2, 3, 4, 5), "bubble": (1, 2, 3, 4, 5)}),
        ("dust:4", {"dust": (4,)}),
        ("posterise:2", {"posterize": (2,)}),
        ("dust:2-3, dust:5", {"dust": (2, 3, 5)}),
        ("all:1-2", dict.fromkeys(registry.BLOODMNIST_C, (1, 2))),
        ("everything", dict.fromkeys(registry.DISTORTIONS, (1, 2, 3, 4, 5))),
    ],
)
def test_parse(text, expected):
    found = registry.parse(text, "--corruptions")
    assert found == expected
    assert list(found) == [name for name in registry.DISTORTIONS if name in expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("defocus", "--corruptions holds the unknown distortion 'defocus'; did you mean defocus_"),
        ("bubbel:3", "did you mean bubble"),
        ("dust:0", "'dust:0', expected NAME, NAME:3 or NAME:1-5"),
        ("dust:6", "severities from 1 to 5"),
        ("dust:4-2", "severities from 1 to 5"),
        ("dust,", "''"),
        ("", "''"),
    ],
)
def test_a_wrong_text(text, message):
    with pytest.raises(UserError, match=message):
        registry.parse(text, "--corruptions")


def test_a_wrong_severity(cells):
    with pytest.raises(ValueError, match="severity 6"):
        distorted(cells[0], "dust", 6)
