"""Replays a recorded session against a server and compares the answers.

A recording has one pair a line: what was sent (`path_template`, `body_template` with `${name}` holes, filled from
`capture`s of earlier answers), when (`sleep_before_ms`, and a `trigger` sent while it blocks), and what came back.
`volatile` names members that differ from run to run, `unordered` lists without a fixed order.
"""

from __future__ import annotations

import http.client
import http.server
import json
import re
import threading
import time
from contextlib import contextmanager
from pathlib import Path

SESSION = Path(__file__).parent / "data" / "session.jsonl"
KEEP = {
    "content-type", "allow", "location", "vary", "x-cache", "age", "content-encoding",
    "content-security-policy", "x-content-type-options", "connection",
}  # fmt: skip


def load():
    """Return the recorded pairs."""
    with SESSION.open() as file:
        return [pair for pair in map(json.loads, file) if pair.get("type") != "meta"]


class _Helper(http.server.BaseHTTPRequestHandler):
    """Answers /NNN with status NNN, for the HTTP checks of the session."""

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = re.match(r"/(\d{3})", self.path)
        body = b"helper says hi\n"
        self.send_response(int(match.group(1)) if match else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_PUT = do_GET  # noqa: N815

    def log_message(self, *_args):
        pass


@contextmanager
def checked_server():
    """Yield HOST:PORT of a server that HTTP checks can be pointed at."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Helper)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(port, method, path, body=None, headers=None, timeout_s=30):
    """Send one request on its own connection; return status, kept headers and body."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        response = connection.getresponse()
        data = response.read()
        kept = {
            k: v
            for k, v in response.getheaders()
            if k.lower() in KEEP or k.lower().startswith("x-")
        }
        return response.status, kept, data
    finally:
        connection.close()


def _fill(template, names):
    return re.sub(r"\$\{(\w+)\}", lambda m: str(names.get(m.group(1), m.group(0))), template)


def _dig(document, headers, path):
    if path.startswith("@"):
        return headers.get(path[1:])
    for part in re.findall(r"[^.\[\]]+", path):
        document = document[int(part)] if isinstance(document, list) else document[part]
    return document


def replay(pairs, port, *, helper):
    """Send the session; yield (recorded pair, status, headers, body)."""
    names = {"HELPER": helper}
    for pair in pairs:
        time.sleep(pair.get("sleep_before_ms", 0) / 1000)
        path = _fill(pair.get("path_template", pair["path"]), names)
        made = pair.get("request_body_gen")
        if made:
            body = made["repeat"] * made["count"]
        else:
            body = pair.get("body_template", pair.get("request_body"))
            body = None if body is None else _fill(body, names)
        other = None
        trigger = pair.get("trigger")
        if trigger:
            other = threading.Thread(target=_fire, args=(trigger, port))
            other.start()
        status, headers, data = send(port, pair["method"], path, body, pair.get("request_headers"))
        if other is not None:
            other.join()
        for name, where in pair.get("capture", {}).items():
            try:
                document = json.loads(data) if not where.startswith("@") else None
                names[name] = _dig(document, headers, where)
            except (ValueError, LookupError, TypeError):
                pass  # the pair itself is reported by the comparison
        yield pair, status, headers, data


def _fire(trigger, port):
    time.sleep(trigger["after_ms"] / 1000)
    body = trigger["body"]
    if body is not None and not isinstance(body, str):
        body = json.dumps(body)
    send(port, trigger["method"], trigger["path"], body)


def _join(path, key):
    if re.match(r"^[A-Za-z0-9_$-]+$", key):
        return f"{path}.{key}" if path else key
    return f"{path}[{json.dumps(key)}]"


def _strip(document, volatile, path=""):
    if path in volatile:
        return "<volatile>"
    if isinstance(document, dict):
        return {k: _strip(v, volatile, _join(path, k)) for k, v in document.items()}
    if isinstance(document, list):
        return [_strip(v, volatile, path + "[]") for v in document]
    return document


def _sorted(document, unordered, path=""):
    if isinstance(document, dict):
        return {k: _sorted(v, unordered, _join(path, k)) for k, v in document.items()}
    if isinstance(document, list):
        items = [_sorted(v, unordered, path + "[]") for v in document]
        if (path or "$") in unordered:
            items.sort(key=lambda item: json.dumps(item, sort_keys=True))
        return items
    return document


def differences(pair, status, headers, data, *, volatile=()):
    """Return what of an answer is not as recorded, in words. JSON is compared with its member order."""
    found = []
    if status != pair["status"]:
        found.append(f"status {status}, recorded {pair['status']}")
    for name, value in pair["headers"].items():
        if name not in pair["volatile_headers"] and headers.get(name) != value:
            found.append(f"header {name}: {headers.get(name)!r}, recorded {value!r}")
    loose = {*pair["volatile"], *volatile}
    if "$" in loose:
        return found
    text, recorded = data.decode("utf-8", "replace"), pair.get("response_body", "")
    try:
        ours, theirs = json.loads(text), json.loads(recorded)
    except ValueError:
        if text != recorded:
            found.append(f"text {text[:300]!r}, recorded {recorded[:300]!r}")
        return found
    unordered = set(pair["unordered"])
    shown = json.dumps(_sorted(_strip(ours, loose), unordered))
    wanted = json.dumps(_sorted(_strip(theirs, loose), unordered))
    if shown != wanted:
        at = next((i for i, (a, b) in enumerate(zip(shown, wanted, strict=False)) if a != b), 0)
        found.append(f"body …{shown[max(0, at - 80) : at + 200]}")
        found.append(f"recorded …{wanted[max(0, at - 80) : at + 200]}")
    elif not loose and not unordered and text != recorded:
        found.append(f"bytes {text[:300]!r}, recorded {recorded[:300]!r}")
    return found
