import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment import colour
from bloodjax.augment.ops import EFFECTS, OPS, POOLS, Setting

TABLE = colour.identity_table()
DOCS = pathlib.Path(__file__).parents[2] / "docs" / "augmentation.md"


def test_every_effect_can_be_applied_and_nothing_else():
    assert set(EFFECTS) == {name for name, op in OPS.items() if op.kind == "effect"}
    assert {op.kind for op in OPS.values()} == {"table", "affine", "matrix", "effect"}


def test_pools_hold_operations_once():
    for pool in POOLS.values():
        assert set(pool) <= set(OPS)
        assert len(set(pool)) == len(pool)
    assert len(POOLS["standard"]) == 14


def test_old_pools_are_not_extended():
    """Another length would change the random numbers of a policy that has the pool."""
    lengths = {"standard": 14, "microscope": 24, "all": 37}
    assert {name: len(POOLS[name]) for name in lengths} == lengths


def made(name, amount, n=500):
    """What `Op.make` gives for `n` random keys, for an image of 80 x 100 pixels."""

    def one(key):
        return OPS[name].make(Setting(jnp.float32(amount), key, (80, 100), TABLE, None))

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), n)))


def test_scale_is_from_half_to_double():
    for amount, factor in ((1.0, 2.0), (-1.0, 0.5), (0.0, 1.0)):
        maps = made("scale", amount, 1)
        np.testing.assert_allclose(maps[0], np.eye(2, 3) / factor)


def test_frames_keep_to_their_limits():
    maps = made("frame", 1.0)
    sides = maps[:, [0, 1], [0, 1]]
    area, aspect = np.sqrt(sides.prod(1)), sides[:, 0] / sides[:, 1]
    for found, limit in ((area, 1.6), (aspect, 1.25)):
        assert np.all(np.abs(np.log(found)) <= np.log(limit) + 1e-5)
        assert min(found.max(), 1 / found.min()) > 1 + 0.95 * (limit - 1)
    offsets = maps[:, :, 2] / [80, 100]
    assert 0.14 < np.abs(offsets).max() <= 0.15
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.15
    np.testing.assert_array_equal(maps[:, [0, 1], [1, 0]], 0)
    np.testing.assert_allclose(made("frame", 0.0, 1)[0], np.eye(2, 3))


def test_white_balance_is_a_gain_a_channel_and_clips():
    tables = made("white_balance", 1.0)
    gains = tables[:, 100] / 100
    assert np.all((gains >= 0.695) & (gains <= 1.435))
    assert gains.min() < 0.72
    assert gains.max() > 1.4
    assert np.abs(np.corrcoef(gains.T) - np.eye(3)).max() < 0.15
    # As a shift of the optical density, it is symmetric.
    assert abs(np.log(gains).mean()) < 0.03
    brightest = np.round(np.minimum(gains.max() * 255, 255))
    assert tables.max() == brightest
    assert np.abs(tables - np.minimum(gains[:, None] * np.arange(256)[:, None], 255)).max() < 2


def test_smears_are_of_the_range_that_the_page_tells():
    change, added = made("smear", 1.0)
    assert change.shape == (500, 3, 3)
    # What is left of the contrast of an equal mixture of azure and eosin.
    stains = np.array([0.93, 1.47, 0.48])
    contrast = np.linalg.norm(stains + stains @ change, axis=1) / np.linalg.norm(stains)
    assert 0.2 < contrast.min() < 0.4
    assert 1.5 < contrast.max() < 2.5
    background = added / np.log(10)
    assert -0.25 < background.min() < -0.1
    assert 0.2 < background.max() < 0.4
    assert 0.03 < background.mean() < 0.07


@pytest.mark.parametrize("name", OPS)
def test_the_page_says_what_magnitude_1_is(name):
    either_way = ", either way" if OPS[name].signed else ""
    assert f"| `{name}` | {OPS[name].full}{either_way} |" in DOCS.read_text("utf-8")
