import concurrent.futures
import json
import re
import time

import numpy as np
import pytest

from bloodjax.data import images
from bloodjax.serving.limits import Limits

app_lib = pytest.importorskip("bloodjax.serving.app", reason="needs the extra [serve]")
service = pytest.importorskip("bloodjax.serving.service")
testclient = pytest.importorskip("fastapi.testclient")

URL = "http://127.0.0.1:8000"


@pytest.fixture
def start(colours, tmp_path):
    """Starts an application in this process; returns a client of it."""
    opened = []

    def started(limits, model=colours, hosts=()):
        answering = service.Service(model, [tmp_path], limits, neighbours_of=0)
        app = app_lib.create(answering, hosts)
        client = testclient.TestClient(app, URL, raise_server_exceptions=False)
        opened.append((client.__enter__(), answering))
        return client

    yield started
    for client, answering in opened:
        client.__exit__()
        answering.close()


@pytest.fixture
def client(start, limits):
    return start(limits)


def files(*contents):
    return [("files", (name, data, "image/png")) for name, data in contents]


def test_a_request_of_several_files(client, plain):
    sent = files(
        ("r.png", plain(200, 9, 9)), ("broken.png", b"no image"), ("g.png", plain(9, 200, 9))
    )
    response = client.post("/api/predict", files=sent)
    assert response.status_code == 200
    first, second, third = response.json()["results"]
    assert (first["name"], first["predicted"], first["error"]) == ("r.png", "red", None)
    assert (second["name"], second["predicted"]) == ("broken.png", None)
    assert second["error"] == "unknown image format"
    assert third["predicted"] == "green"
    assert first.keys() == {
        *("name", "predicted", "confidence", "refer", "why", "probabilities", "set", "notes"),
        "error",
    }


@pytest.mark.parametrize(
    "name", ["../../../etc/passwd", "/etc/passwd", "<script>alert(1)</script>"]
)
def test_a_name_is_sent_back_and_never_opened(client, name, monkeypatch):
    monkeypatch.setattr("builtins.open", lambda *args, **kwargs: pytest.fail(f"opened {args}"))
    response = client.post("/api/predict", files=files((name, b"no image")))
    assert response.headers["content-type"] == "application/json"
    assert response.json()["results"][0]["name"] == name


def test_limits(client, plain):
    large = plain(1, 2, 3)[:50] + b"\0" * 20_000
    results = client.post("/api/predict", files=files(("l", large), ("s", plain(200, 1, 1)))).json()
    assert results["results"][0]["error"] == "larger than the limit of 0.02 MB"
    assert results["results"][1]["predicted"] == "red"
    response = client.post("/api/predict", files=files(*[("a", b"1")] * 6))
    assert (response.status_code, response.json()) == (
        413,
        {"detail": "expected at most 5 files in a request"},
    )
    response = client.post("/api/predict", content=b"1", headers={"content-type": "text/plain"})
    assert response.status_code == 415


def test_a_body_is_refused_before_all_of_it_is_read(client):
    read = []

    def body():
        yield b'--x\r\nContent-Disposition: form-data; name="files"\r\n\r\n'
        for i in range(1000):
            read.append(i)
            yield b"\0" * 100_000

    kind = {"content-type": "multipart/form-data; boundary=x"}
    response = client.post("/api/predict", content=body(), headers=kind)
    assert response.status_code == 413


def test_a_heat_map_and_a_preview(client, plain):
    sent = files(("a.png", plain(200, 9, 9, (30, 50))))
    for path in ("/api/explain", "/api/explain?class_name=green", "/api/preview"):
        response = client.post(path, files=sent)
        assert response.headers["content-type"] == "image/png"
        assert images.decode_whole(response.content)[0].shape == (30, 50, 3)
    assert client.post("/api/explain?class_name=x", files=sent).status_code == 422
    for path in ("/api/explain", "/api/preview", "/api/nearest"):
        assert client.post(path, files=sent * 2).json() == {"detail": "2 files, expected one"}
    response = client.post("/api/preview", files=files(("a", b"no image")))
    assert (response.status_code, response.json()) == (422, {"detail": "unknown image format"})


def test_the_description(client):
    description = client.get("/openapi.json").json()
    assert set(description["paths"]) == {
        f"/api/{name}" for name in ("model", "predict", "explain", "nearest", "preview")
    }
    schema = description["components"]["schemas"]["Result"]["properties"]
    assert {"predicted", "confidence", "refer", "why", "probabilities", "error"} <= set(schema)
    body = description["paths"]["/api/predict"]["post"]["requestBody"]["content"]
    assert "files" in body["multipart/form-data"]["schema"]["properties"]


@pytest.mark.parametrize("path", app_lib._FILES)
def test_the_page_refers_to_nothing_elsewhere(client, path):
    response = client.get(f"/{path}")
    assert response.status_code == 200
    assert not re.search(r"(src|href|url\(|import|fetch\()\W*(https?:)?//", response.text)
    assert "default-src 'none'" in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in response.headers


def test_the_page_makes_no_markup_of_texts():
    for name in ("page.js", "docs.js"):
        script = (app_lib.importlib.resources.files("bloodjax.serving") / "page" / name).read_text()
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script
        )


@pytest.mark.parametrize(
    "path",
    [
        *("/../app.py", "/..%2fapp.py", "/%2e%2e/app.py", "/page/../../app.py", "/index.html"),
        *("//etc/passwd", "/etc/passwd", "/page.js/../../app.py", "/static/page.js", "/redoc"),
        *("/page.css%00", "/..\\app.py", "/page.js%2f..%2f..%2fapp.py"),
    ],
)
def test_no_other_file_can_be_read(client, path):
    response = client.get(URL + path)
    assert response.status_code == 404
    assert response.json() == {"detail": "Not Found"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        *(
            ("127.0.0.1:8000", 200),
            ("localhost:8000", 200),
            ("[::1]:8000", 200),
            ("LOCALHOST", 200),
        ),
        *(("192.168.1.5:8000", 200), ("cells.example:443", 200), ("evil.example", 403), ("", 403)),
        *(("127.0.0.1@evil.example", 403), ("127.0.0.1.evil.example", 403), ("[::1", 403)),
    ],
)
def test_the_host_must_be_this_machine(start, limits, host, status):
    client = start(limits, hosts=["cells.example"])
    response = client.get("/api/model", headers={"host": host})
    assert response.status_code == status
    if status == 403:
        assert response.json()["detail"].startswith("unknown Host")
        assert "default-src 'none'" in response.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (URL, 200),
        ("http://127.0.0.1:9000", 403),
        ("https://evil.example", 403),
        ("null", 403),
        ("http://[", 403),
    ],
)
def test_a_form_of_another_site_is_refused(client, plain, origin, status):
    sent = files(("a.png", plain(200, 9, 9)))
    response = client.post("/api/predict", files=sent, headers={"origin": origin})
    assert response.status_code == status
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://cells.example.org", 200),
        ("https://Cells.example.org:8443", 200),
        ("https://localhost:9000", 403),
        ("https://evil.example", 403),
    ],
)
@pytest.mark.parametrize("host", ["127.0.0.1:8000", "cells.example.org"])
def test_the_page_behind_a_proxy_of_an_allowed_name_may_ask(
    start, limits, plain, host, origin, status
):
    client = start(limits, hosts=["cells.example.org"])
    sent = files(("a.png", plain(200, 9, 9)))
    response = client.post("/api/predict", files=sent, headers={"origin": origin, "host": host})
    assert response.status_code == status


def test_a_request_that_takes_too_long(start, colours, plain, monkeypatch):
    answer = colours.answer
    monkeypatch.setattr(colours, "answer", lambda x, tta: (time.sleep(0.5), answer(x))[1])
    client = start(Limits(seconds=0.2))
    response = client.post("/api/predict", files=files(("a", plain(1, 2, 3))))
    assert response.status_code == 503
    assert response.json()["detail"].startswith("no answer within 0.2 s")
    time.sleep(0.4)
    monkeypatch.setattr(colours, "answer", lambda x, tta: answer(x))
    response = client.post("/api/predict", files=files(("a", plain(1, 2, 3))))
    assert response.status_code == 200


def test_a_bug_is_for_the_terminal(client, colours, plain, monkeypatch, caplog):
    def broken(images, tta):
        raise RuntimeError("the secret of /a/place")

    monkeypatch.setattr(colours, "answer", broken)
    response = client.post("/api/predict", files=files(("a", plain(1, 2, 3))))
    assert response.status_code == 500
    assert response.json() == {"detail": "an error of the server, which its terminal shows"}
    assert "content-security-policy" in response.headers
    assert "the secret of /a/place" in caplog.text


def test_many_requests_at_once(client, plain):
    colours = np.random.default_rng(0).integers(20, 200, (40, 3))

    def ask(colour):
        response = client.post("/api/predict", files=files(("a", plain(*map(int, colour)))))
        return response.json()["results"][0]["probabilities"]["red"]

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = list(threads.map(ask, colours))
    expected = (colours[:, 0] + 1) / (colours + 1).sum(axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_about_the_classifier(client):
    response = client.get("/api/model")
    about = json.loads(response.content)
    assert about["classes"][2] == "<b>blue</b>"
    assert response.headers["content-type"] == "application/json"
