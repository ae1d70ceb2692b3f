import itertools
from concurrent import futures

import numpy as np
import pytest

from bloodjax.data.formats.records import Reader, Shard, Writer
from bloodjax.errors import UserError

RNG = np.random.default_rng(0)
RECORDS = [RNG.bytes(int(n)) for n in RNG.integers(1, 2000, 30)]
PARTS = (0, 7, 8, 30)


@pytest.fixture
def shards(tmp_path):
    found = []
    for first, end in itertools.pairwise(PARTS):
        path = tmp_path / f"records-{first}"
        writer = Writer(path)
        for record in RECORDS[first:end]:
            writer.write(record)
        writer.close()
        found.append(Shard(path, end - first))
    return found


def test_records_are_counted_through_all_shards(shards):
    reader = Reader(shards)
    assert len(reader) == 30
    for numbers in ([0, 7, 6, 29, 8, 7, 7], [*range(30)], [29], []):
        assert reader.read(numbers) == [RECORDS[i] for i in numbers]
    assert [reader.shard(i) for i in (6, 7, 8, 29)] == [shards[i] for i in (0, 1, 2, 2)]


def test_several_threads_may_read(shards):
    reader = Reader(shards)
    orders = [np.random.default_rng(i).permutation(30).tolist() for i in range(64)]
    with futures.ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(reader.read, orders), strict=True):
            assert found == [RECORDS[i] for i in order]


def test_the_same_records_are_the_same_bytes(shards, tmp_path):
    writer = Writer(tmp_path / "again")
    for record in RECORDS[:7]:
        writer.write(record)
    writer.close()
    assert (tmp_path / "again").read_bytes() == shards[0].path.read_bytes()


def test_a_missing_shard_is_named_when_it_is_asked_for(shards):
    shards[1].path.unlink()
    reader = Reader(shards)
    assert reader.read([0, 29]) == [RECORDS[0], RECORDS[29]]
    with pytest.raises(UserError, match="records-7: no such file, expected 1 record"):
        reader.read([0, 7])


def test_another_number_of_records_is_an_error(shards):
    with pytest.raises(UserError, match="records-8: contains 22 records, expected 23"):
        Reader([*shards[:2], Shard(shards[2].path, 23)]).read([8])


def test_damage_is_one_line_that_names_the_shard_or_harmless(shards):
    whole = shards[2].path.read_bytes()
    expected, refused = RECORDS[8:], []
    rng = np.random.default_rng(1)
    for trial in range(120):
        damaged = bytearray(whole)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(len(whole))]
        elif trial % 3 == 1:  # among the records; most of a small file is padding
            damaged[rng.integers(len(b"".join(expected)))] ^= 1 << rng.integers(8)
        else:
            start = rng.integers(len(whole) - 40)
            damaged[start : start + 40] = rng.bytes(40)
        shards[2].path.write_bytes(damaged)
        try:
            assert Reader(shards).read(range(8, 30)) == expected
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 40
    assert all(line.startswith(f"{shards[2].path}: ") for line in refused)


def test_a_disk_that_takes_nothing_is_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere/a: cannot be written"):
        Writer(tmp_path / "nowhere/a").write(b"")
