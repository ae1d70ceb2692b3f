import pytest

from bloodjax.planning import batch_search

GIB = 2**30


def search(peak_of, known, limit=GIB, multiple=8, most=10**6, **options):
    tried = []

    def compile_for(batch):
        tried.append(batch)
        return peak_of(batch)

    known = {batch: peak_of(batch) for batch in known}
    largest, peaks = batch_search.largest(known, limit, multiple, most, compile_for, **options)
    assert len(tried) <= 3
    assert set(peaks) == {*known, *tried}
    return largest, tried


@pytest.mark.parametrize("start", [8, 64, 800, 4096])
def test_the_line_of_two_batches_leads_to_the_largest_one(start):
    fixed, each = 100_000_000, 1_000_000
    largest, _ = search(lambda batch: fixed + each * batch, [start])
    best = (GIB - fixed) // each
    assert 0.95 * best < largest <= best
    assert largest % 8 == 0


def test_memory_that_is_not_quite_affine_still_ends_with_a_batch_that_fits():
    def peak(batch):
        return 50_000_000 + 900_000 * batch + 120 * batch**2

    largest, _ = search(peak, [64])
    assert peak(largest) <= GIB
    assert peak(2 * largest) > GIB


def test_whole_tiles_are_tried_as_others_may_take_more_than_a_larger_batch():
    def peak(batch):
        return 100_000_000 + 1_000_000 * batch + (batch % 64 > 0) * 200_000_000

    options = {"multiple": 2, "tile": 64, "fixed": 100_000_000}
    largest, tried = search(peak, [64], **options)
    assert largest == 896  # of 973 that would fit
    assert all(batch % 64 == 0 for batch in tried)
    assert search(lambda batch: 20_000_000 * batch, [8], **options)[0] == 52


def test_known_fixed_memory_spares_tries():
    def peak(batch):
        return 800_000_000 + 1_000_000 * batch

    assert search(peak, [64], fixed=800_000_000)[1][0] > 200
    assert search(peak, [64])[1][0] == 128


def test_a_run_that_does_not_fit_finds_a_smaller_batch():
    largest, tried = search(lambda batch: 10**8 + 10**7 * batch, [512])
    assert 64 <= largest <= (GIB - 10**8) // 10**7
    assert tried[0] < 512


def test_no_batch_fits_beside_parameters_that_do_not():
    largest, _ = search(lambda batch: 2 * GIB + batch, [64])
    assert largest is None


def test_the_training_images_are_the_most():
    assert search(lambda batch: 10**6 + batch, [64], most=1680)[0] == 1680
    assert search(lambda batch: 10**6 + batch, [1680], most=1680) == (1680, [])


def test_one_compilation_is_extrapolated_in_proportion():
    arguments = {"batch": 64, "limit": 1000, "multiple": 16, "most": 10**6}
    assert batch_search.extrapolated(300, 100, **arguments) == 288  # 900 / (200 / 64)
    assert batch_search.extrapolated(1300, 1100, **arguments) == 0
    assert batch_search.extrapolated(101, 100, 64, 10**9, 16, 512) == 512
