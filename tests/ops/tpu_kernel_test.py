import pytest

from bloodjax.ops.tpu_kernel import block_rows


@pytest.mark.parametrize(
    ("rows", "batch", "most", "block"),
    [
        (24 * 24 * 64, 64, 1365, 1152),
        (6 * 6 * 64, 64, 341, 256),
        (9 * 512, 512, 1365, 512),
        (9 * 2048, 2048, 256, 256),
        (6 * 6 * 40, 40, 1365, 720),
        (9 * 8, 8, 1365, 0),
        (9 * 40, 40, 1365, 0),
    ],
)
def test_a_block_is_whole_pixels_or_a_part_of_the_batch(rows, batch, most, block):
    assert block_rows(rows, batch, most) == block
