from bloodjax.data.reading import LeftOut, Reading, left_out_by_class

READING = Reading("cells", "class folders", ("12 of 16 bits",), (LeftOut("unreadable", "a", 2),))


def test_a_detail_is_said_once():
    twice = READING.with_details("7 groups").with_details("7 groups", "7 groups").with_details("")
    assert twice.details == ("12 of 16 bits", "7 groups")


def test_counts_of_one_reason_and_class_are_added():
    more = READING.with_left_out(LeftOut("junk", "a", 1), LeftOut("unreadable", "a", 3))
    assert more.left_out == (LeftOut("unreadable", "a", 5), LeftOut("junk", "a", 1))


def test_left_out_images_are_counted_by_class():
    expected = (LeftOut("junk", "b", 2), LeftOut("junk", "a", 1))
    assert left_out_by_class("junk", ["b", "a", "b"]) == expected


def test_parts_of_one_source_keep_its_reading():
    assert READING.joined(READING) == READING
    assert READING.joined(Reading()) == READING


def test_joined_sources_are_both_named():
    other = Reading("more.zip", "class folders", ("3 groups",), (LeftOut("unreadable", "a", 1),))
    joined = READING.joined(other)
    assert (joined.spec, joined.layout) == ("cells + more.zip", "class folders")
    assert joined.details == ("12 of 16 bits", "3 groups")
    assert joined.left_out == (LeftOut("unreadable", "a", 3),)
