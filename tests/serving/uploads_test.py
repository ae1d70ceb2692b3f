import pytest

from bloodjax.serving.limits import Limits, Refused

uploads = pytest.importorskip("bloodjax.serving.uploads", reason="needs the extra [serve]")

LIMITS = Limits(file_bytes=30, files=3)
TYPE = "multipart/form-data; boundary=x--x"


def part(content, disposition='form-data; name="files"; filename="a.png"'):
    head = f"--x--x\r\nContent-Disposition: {disposition}\r\nContent-Type: image/png\r\n\r\n"
    return head.encode() + content + b"\r\n"


def read(*parts, step=1000, limits=LIMITS, end=b"--x--x--\r\n"):
    reader = uploads.Reader(TYPE, limits)
    body = b"".join(parts) + end
    for start in range(0, len(body), step):
        reader.feed(body[start : start + step])
    return reader.finish()


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_files_in_pieces_of_any_size(step):
    first, second = b"\r\n--x-\x00\xff", b"--x--y"
    found = read(part(first), part(second), step=step)
    assert [upload.data for upload in found] == [first, second]
    assert not any(upload.error for upload in found)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "Zelle 1, größer.png", "<img src=x>.png", "a;b"]
)
def test_a_name_is_a_text(name):
    disposition = f'form-data; name="files"; filename="{name}"'
    assert read(part(b"1", disposition))[0].name == name


@pytest.mark.parametrize("rest", ["", '; filename=""'])
def test_a_file_without_a_name_gets_its_number(rest):
    found = read(part(b"1"), part(b"2", f'form-data; name="files"{rest}'))
    assert found[1].name == "file 2"


def test_a_file_that_is_too_large_is_no_reason_to_refuse_the_others():
    small, large = read(part(b"a" * 30), part(b"a" * 31), step=9)
    assert (len(small.data), small.error) == (30, "")
    assert (large.data, large.error) == (b"", "larger than the limit of 3e-05 MB")


@pytest.mark.parametrize(
    ("parts", "end", "status", "message"),
    [
        ([part(b"1")] * 4, b"--x--x--", 413, "expected at most 3 files"),
        ([part(b"1")], b"", 400, "it is truncated"),
        ([], b"--x--x--\r\n", 400, "no files, expected at least one in the field 'files'"),
        ([b"not a form"], b"", 400, "damaged multipart request"),
        ([part(b"1", 'form-data; name="n"')], b"", 400, "unexpected field 'n', expected 'files'"),
        ([part(b"1", "x" * 9000)], b"--x--x--", 400, "damaged multipart request"),
        ([part(b"1" * 1_000_000)], b"--x--x--", 413, "expected a request of at most 1 MB"),
    ],
)
def test_what_is_refused(parts, end, status, message):
    with pytest.raises(Refused, match=message) as refused:
        read(*parts, end=end)
    assert refused.value.status == status


@pytest.mark.parametrize("kind", ["", "image/png", "multipart/form-data", "application/json"])
def test_another_type_of_request(kind):
    with pytest.raises(Refused, match="expected multipart/form-data") as refused:
        uploads.Reader(kind, LIMITS)
    assert refused.value.status == 415


def test_a_request_holds_its_files():
    assert Limits(file_bytes=10**9, files=1).request_bytes > 10**9
    assert Limits(file_bytes=10**3, files=8).request_bytes < 2 * 10**6
    assert Limits(file_bytes=10**8, files=10**6).request_bytes < 3 * 10**8
