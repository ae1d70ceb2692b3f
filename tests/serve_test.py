import importlib.util
import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request

import pytest

from bloodjax.data import images
from bloodjax.data.synthetic import render

NEEDS = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("fastapi", "uvicorn")),
    reason="needs the extra [serve]",
)


@pytest.mark.full
@NEEDS
def test_answers_until_ctrl_c(command, trained):
    arguments = command("serve", f"--workdir={trained}", "--port=0", "--neighbours=0")
    with subprocess.Popen(**arguments, stderr=subprocess.PIPE) as process:
        url = re.match(
            r"(http://127\.0\.0\.1:\d+/)  \(Ctrl-C ends it\)$", process.stderr.readline()
        )
        assert url is not None
        cell = render.render_dataset(8, 32, seed=4).images[0]
        head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body = head + images.encode_png(cell) + b"\r\n--x--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        request = urllib.request.Request(f"{url[1]}api/predict", body, kind)
        with urllib.request.urlopen(request, timeout=120) as response:
            (found,) = json.load(response)["results"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr.read() == "stopped\n"
    import bloodjax

    model = bloodjax.load(trained)
    probabilities = model.predict(cell)[0]
    assert found["predicted"] == model.classes[int(probabilities.argmax())]
    assert list(found["probabilities"].values()) == pytest.approx(probabilities.tolist(), abs=1e-5)


@pytest.mark.full
@NEEDS
def test_a_port_in_use_and_a_folder_without_a_run_are_one_line(command, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        arguments = command("serve", f"--workdir={tmp_path}", f"--port={port}")
        done = subprocess.run(**arguments, capture_output=True)
    expected = f"error: --port={port}: another process uses it, expected a free port\n"
    assert (done.returncode, done.stderr) == (2, expected)
    done = subprocess.run(
        **command("serve", f"--workdir={tmp_path}", "--port=0"), capture_output=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path}: no run is here")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_the_extra_it_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules |= dict.fromkeys(('fastapi', 'uvicorn', 'python_multipart')); "
        f"sys.argv = ['serve', '--workdir={tmp_path}']; "
        "import runpy; runpy.run_module('bloodjax.serve', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == (
        "error: serve needs fastapi, uvicorn, python-multipart, expected the extra [serve]: "
        "pip install 'bloodjax[serve]'\n"
    )
