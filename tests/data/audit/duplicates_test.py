"""Tests of bloodjax/data/audit/duplicates.py."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageEnhance, ImageFilter
from scipy.ndimage import gaussian_filter

from bloodjax.data import fingerprint, images
from bloodjax.data.audit import duplicates


def blobs(n, size=96, seed=0):
    """Random smooth images, each of its own structure."""
    noise = np.random.default_rng(seed).normal(size=(n, size, size, 3))
    smooth = gaussian_filter(noise, (0, size / 16, size / 16, 0))
    smooth /= smooth.std((1, 2), keepdims=True)
    return np.clip(128 + 45 * smooth, 0, 255).astype(np.uint8)


def jpeg(image, quality):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def noisy(image):
    pixels = np.asarray(image) + np.random.default_rng(0).normal(0, 8, (*image.size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


CHANGES = {
    "JPEG": lambda image: jpeg(image, 40),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "flatter": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
    "tinted": lambda image: image.convert("RGB", (1.08, 0, 0, 0, 0, 0.95, 0, 0, 0, 0, 1, 0)),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "resized": lambda image: image.resize((72, 72)).resize(image.size),
    "shifted": lambda image: ImageChops.offset(image, 2, -1),
    "zoomed": lambda image: image.resize(image.size, box=(1, 1, 95, 95)),
    "noisy": noisy,
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "turned, JPEG": lambda image: jpeg(image.transpose(Image.Transpose.ROTATE_90), 70),
    "transposed": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
}


def near_groups(pixels):
    ids = duplicates.near_ids(images.resize(pixels, duplicates.THUMBNAIL))
    return [list(group) for group in duplicates.groups(ids) if len(group) > 1]


def real_cells(cells_dir, count):
    """`count` cells, evenly spread over the names in the validation zip."""
    with zipfile.ZipFile(cells_dir / "pbc96_val.zip") as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".jpg"))
        chosen = names[:: len(names) // count][:count]
        return np.stack([images.decode(archive.read(name), 96) for name in chosen])


def test_exact_ids_name_the_first_of_the_same_pixels():
    one, other = blobs(2)
    slightly_off = one.copy()
    slightly_off[0, 0, 0] ^= 1
    pixels = np.stack([other, one, slightly_off, one, other])
    assert duplicates.exact_ids(fingerprint.of_images(pixels)).tolist() == [0, 1, 2, 1, 0]


def test_groups_are_in_order_of_their_first_index():
    found = duplicates.groups(np.array([7, 3, 7, 5, 3]))
    assert [group.tolist() for group in found] == [[0, 2], [1, 4], [3]]
    assert duplicates.groups(np.empty(0, np.int64)) == []


@pytest.mark.parametrize("change", CHANGES)
def test_near_ids_find_changed_copies_of_made_up_images(change):
    pixels = blobs(40)
    copies = [np.asarray(CHANGES[change](Image.fromarray(image))) for image in pixels[::4]]
    expected = [[original, 40 + i] for i, original in enumerate(range(0, 40, 4))]
    assert near_groups(np.concatenate([pixels, copies])) == expected


def test_near_ids_find_changed_copies_of_real_cells_and_nothing_else(cells_dir):
    cells = real_cells(cells_dir, 400)
    changes = list(CHANGES.values())
    copies = [
        np.asarray(changes[i % len(changes)](Image.fromarray(cell)))
        for i, cell in enumerate(cells[:120])
    ]
    expected = [[i, 400 + i] for i in range(120)]
    assert near_groups(np.concatenate([cells, copies])) == expected


def test_near_ids_join_many_copies_without_listing_all_pairs():
    frame, *others = blobs(21)
    rng = np.random.default_rng(0)
    copies = np.clip(frame + rng.normal(0, 6, (1200, *frame.shape)), 0, 255).astype(np.uint8)
    assert near_groups(np.concatenate([copies, others])) == [list(range(1200))]


def test_near_ids_leave_blank_images_alone():
    blank = np.stack([np.full((48, 48, 3), grey, np.uint8) for grey in (0, 120, 255)])
    assert duplicates.near_ids(blank).tolist() == [0, 1, 2]


def spot(rng, y, x):
    """A dark-field spot without noise: it varies in size, brightness and shape only."""
    r, e, t = rng.uniform(0.1, 0.2), rng.uniform(0.85, 1.15), rng.uniform(0, np.pi)
    u, v = x * np.cos(t) + y * np.sin(t), y * np.cos(t) - x * np.sin(t)
    return rng.uniform(60, 160) * np.exp(-((u * e) ** 2 + (v / e) ** 2) / (2 * r * r))


def ring(rng, y, x):
    """A ring with noise, which varies in its radius and width."""
    r, w = rng.uniform(0.2, 0.35), rng.uniform(0.015, 0.03)
    noise = rng.normal(5, 2, x.shape)
    return rng.uniform(80, 200) * np.exp(-(((np.hypot(x, y) - r) / w) ** 2)) + noise


def nucleus(rng, y, x):
    """Up to four bright lobes on a dark background with shot noise."""
    grey = np.zeros_like(x)
    for _ in range(rng.integers(1, 5)):
        angle, out, r = rng.uniform(0, 6.3), rng.uniform(0, 0.12), rng.uniform(0.06, 0.12)
        away = (x - out * np.cos(angle)) ** 2 + (y - out * np.sin(angle)) ** 2
        grey = np.maximum(grey, np.exp(-((away / (2 * r * r)) ** 2)))
    return rng.uniform(60, 200) * grey + rng.poisson(4, x.shape)


def disc(rng, y, x):
    """A cut-out: a pale disc with a dark one inside, on pure black."""
    outer = rng.uniform(0.28, 0.42)
    inner, (dx, dy) = outer * rng.uniform(0.5, 0.9), rng.normal(0, 0.03, 2)
    grey = np.where(np.hypot(x, y) < outer, rng.normal(180, 8), 0)
    return np.where(np.hypot(x - dx, y - dy) < inner, rng.normal(90, 8), grey)


@pytest.mark.parametrize("draw", [spot, ring, nucleus, disc])
def test_different_images_with_little_structure_are_no_near_duplicates(draw):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-32:32, -32:32] / 64
    grey = np.stack([draw(rng, y, x) for _ in range(120)])
    pixels = np.clip(grey, 0, 255).astype(np.uint8)[..., None].repeat(3, axis=3)
    mirrored = np.concatenate([pixels, pixels[:10, :, ::-1]])
    groups = near_groups(mirrored)
    # By chance, one pair may be as similar as versions of one image.
    assert [group for group in groups if max(group) >= 120] == [[i, 120 + i] for i in range(10)]
    assert len(groups) <= 11


def test_the_limit_of_different_images_rises_only_if_chance_explains_them():
    cells = duplicates._details(blobs(120, 48).mean(axis=-1, dtype=np.float32))
    apart = np.arange(120)
    assert duplicates._chance_limit(cells, apart) == duplicates._ACCEPT
    y, x = np.mgrid[-24:24, -24:24] / 48
    rng = np.random.default_rng(0)
    spots = np.stack([spot(rng, y, x) for _ in range(120)]).astype(np.float32)
    assert 0.99 < duplicates._chance_limit(duplicates._details(spots), apart) < 1
