"""Rendered nginx configurations are accepted by a real nginx."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from waypost.base.clock import SystemClock
from waypost.drivers.render import dependency as ask
from waypost.drivers.render import records
from waypost.drivers.render.evaluate import Renderer
from waypost.model.catalog import Node, Service

pytestmark = pytest.mark.needs("nginx")

HERE = Path(__file__).parent
CASES = HERE.parents[1] / "conformance/templates/data"
STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")

SERVICES = {
    "httpfront": (("http",), (32769, 32768, 32770)),
    "httpbackend": ((), (8081,)),
    "tcpfront-19999": (("tcp",), (32771, 32772)),
    "consul": ((), (8300,)),
}


def rendered(text, env):
    known = {
        ask.services(""): records.snippets({name: tags for name, (tags, _) in SERVICES.items()})
    }
    for name, (tags, ports) in SERVICES.items():
        known[ask.service(name)] = tuple(
            records.health_service(
                Node(node=f"n{port}", address="127.0.0.1"),
                Service(node=f"n{port}", id=f"{name}:{port}", name=name, tags=tags, port=port),
                (),
            )
            for port in ports
        )
    evaluation = Renderer.parse(text).evaluate(known, clock=SystemClock(), env=env)
    assert evaluation.missing == ()
    return evaluation.text


def accepted(directory, text):
    config = directory / "nginx.conf"
    if "stream {" in text and STREAM.exists():
        text = f"load_module {STREAM};\n{text}"
    config.write_text(text)
    done = subprocess.run(
        ["nginx", "-t", "-c", str(config), "-p", str(directory), "-e", "stderr"],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + text


def test_http_and_stream_by_tags(tmp_path):
    text = rendered((HERE / "nginx.conf.tmpl").read_text(), {"DIR": str(tmp_path)})
    assert text.count("server 127.0.0.1:3277") == 3
    assert "listen 127.0.0.1:19999;" in text
    assert "httpbackend" not in text
    accepted(tmp_path, text)


def test_recorded_nginx_template(tmp_path):
    text = (CASES / "232.expected").read_text()
    assert json.loads((CASES / "232.meta.json").read_text())["exit"] == 0
    accepted(
        tmp_path, f"pid {tmp_path}/pid;\n" + text.replace("listen 80;", "listen 127.0.0.1:18081;")
    )
