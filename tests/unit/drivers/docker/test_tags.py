from __future__ import annotations

import http.server
import threading
from typing import Any

import pytest

from waypost.base.errors import Malformed, WaypostError
from waypost.drivers.docker.tags import compile_tags

INSPECTED: dict[str, Any] = {
    "Id": "bcf697c09736873fe5bc",
    "Name": "/web.1",
    "State": {"Pid": 12, "Running": True},
    "Config": {
        "Image": "reg:5000/team/web:1.2",
        "Labels": {"role": "front", "json": '{"a":{"b":["x","y"]}}'},
        "Env": ["A=1", "VERSION=7", "VERBOSE=1"],
    },
    "NetworkSettings": {"Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8000"}]}},
}


def render(text: str) -> str:
    compiled = compile_tags(text)
    return compiled if isinstance(compiled, str) else compiled(INSPECTED)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a,b", "a,b"),
        ("{{.ID}}", "bcf697c09736873fe5bc"),
        ("{{.Id}},{{.Name}},{{.State.Pid}}", "bcf697c09736873fe5bc,/web.1,12"),
        ("{{strSlice .ID 0 4}}", "bcf6"),
        (
            "{{strSlice .ID 18}},{{strSlice .ID 99}},{{strSlice .ID 18 2}}",
            "bc,bcf697c09736873fe5bc,bc",
        ),
        (
            "{{sIndex 0 .Config.Env}},{{sIndex -1 .Config.Env}},{{sIndex 9 .Config.Env}}",
            "A=1,VERBOSE=1,VERBOSE=1",
        ),
        ('{{splitIndex 1 ":" .Config.Image}}', "5000/team/web"),
        ('{{mIndex "role" .Config.Labels}},{{mIndex "none" .Config.Labels}}', "front,"),
        ("{{.Config.Labels.role}}{{.Config.Labels.none}}", "front"),
        ('{{index .Config.Labels "role"}}', "front"),
        ('{{toUpper "a"}}{{toLower "B"}}', "Ab"),
        ('{{replace 1 "b" "x" "bb"}}{{replace -1 "b" "x" "bb"}}', "xbxx"),
        ('{{join "+" (split "." "a.b")}}', "a+b"),
        ('{{matchFirstElement "^VER" .Config.Env}}', "VERSION=7"),
        ('{{join ";" (matchAllElements "^VER" .Config.Env)}}', "VERSION=7;VERBOSE=1"),
        ('{{jsonParse .Config.Labels.json "a::b::1"}},{{jsonParse "nonsense" "a"}}', "y,"),
        (
            "{{range $p, $b := .NetworkSettings.Ports}}{{$p}}={{(index $b 0).HostIP}}{{end}}",
            "80/tcp=0.0.0.0",
        ),
    ],
)
def test_functions(text: str, expected: str) -> None:
    assert render(text) == expected


def test_http_get() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"zone":"a"}')

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/"
        assert render(f'{{{{jsonParse (httpGet "{url}") "zone"}}}}') == "a"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert render(f'{{{{httpGet "{url}"}}}}' + '{{httpGet "file:///etc/passwd"}}') == ""


def test_errors() -> None:
    with pytest.raises(Malformed, match="-tags: template: tags:1"):
        compile_tags("{{nope}}")
    with pytest.raises(WaypostError, match="bad regular expression"):
        render('{{matchFirstElement "(" .Config.Env}}')
