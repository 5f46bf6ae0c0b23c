"""A headless Chromium, driven over the WebDriver protocol with the standard library. Source: W3C WebDriver."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress

ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1200,820",
]  # fmt: skip


class Browser:
    """One browser with one page. Use as a context manager."""

    def __init__(self, profile, *, language="en"):
        self._profile = profile
        self._language = language

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._base = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + 20
        while True:
            try:
                self._call("GET", "/status")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        arguments = [*ARGUMENTS, f"--user-data-dir={self._profile}", f"--lang={self._language}"]
        options = {"args": arguments, "prefs": {"intl.accept_languages": self._language}}
        wanted = {
            "alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        }
        session = self._call("POST", "/session", {"capabilities": wanted})
        self._base += f"/session/{session['sessionId']}"
        return self

    def __exit__(self, *_):
        with suppress(OSError):
            self._call("DELETE", "")
        self._driver.terminate()
        self._driver.wait(10)

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def open(self, url):
        self._call("POST", "/url", {"url": url})

    def run(self, script, *args):
        """Run a function body in the page and return its result."""
        return self._call("POST", "/execute/sync", {"script": script, "args": list(args)})

    def wait(self, script, *, at_most_s=10):
        """Wait until a script returns something true; return it."""
        deadline = time.monotonic() + at_most_s
        while True:
            found = self.run(script)
            if found:
                return found
            assert time.monotonic() < deadline, f"never true: {script}\n{self.text()}"
            time.sleep(0.05)

    def text(self):
        return self.run("return document.body.innerText")

    def keys(self, *keys):
        """Type into whatever has the focus."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._call(
            "POST", "/actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]}
        )

    def screenshot(self, path):
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def complaints(self):
        """Return what the page wrote to the console as an error."""
        entries = self._call("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] == "SEVERE"]
