import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bloodjax.augment import chosen

BATCH = 20


def invert(x, params):
    return params[:, None] - x


@pytest.mark.parametrize("size", [1, 8, 20])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.6, 1.0])
def test_every_image_that_chose_it_is_changed_once_and_no_other(size, share):
    rng = np.random.default_rng(0)
    flags = rng.uniform(size=(3, BATCH)) < share
    images = rng.uniform(size=(BATCH, 5)).astype(np.float32)
    params = rng.uniform(size=BATCH).astype(np.float32)

    @jax.jit
    def run(flags, images, params):
        who = chosen.choose(list(flags))
        for choice in range(3):
            images = chosen.update(invert, who, choice, size, images, params)
        return images

    expected = images
    for on in flags:
        expected = np.where(on[:, None], invert(expected, params), expected)
    np.testing.assert_array_equal(run(flags, images, params), expected)


def test_the_function_runs_only_as_often_as_there_are_groups():
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return x + 1

    run = jax.jit(lambda on, x: chosen.update(counted, chosen.choose([on]), 0, 4, x))
    for chose, groups in ((0, 0), (1, 1), (4, 1), (5, 2), (BATCH, 5)):
        calls.clear()
        on = np.arange(BATCH) < chose
        found = run(on, jnp.zeros((BATCH, 2)))
        jax.effects_barrier()
        assert len(calls) == groups
        assert found.sum() == 2 * chose


def test_a_group_has_room_for_the_images_that_mostly_choose_it():
    assert chosen.group_size(0.066, 64) == 8
    assert chosen.group_size(0.31, 64) == 24
    assert chosen.group_size(0.31, 64, largest=8) == 8
    assert chosen.group_size(1.0, 64) == 64
    assert chosen.group_size(0.0, 64) == 8
    assert chosen.group_size(0.5, 3) == 3
