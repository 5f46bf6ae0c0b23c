"""The page in a real browser: it shows what is there, follows changes, and foreign text stays text."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from .browser import Browser

pytestmark = pytest.mark.needs("chromium")


class Agent:
    def __init__(self, folder):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "agent.log"
        command = [
            sys.executable, "-m", "waypost", "agent", "-dev", "-ui", f"-http-port={self.port}", "-dns-port=-1",
            "-docker=off", "-balancer=off", "-node=n1",
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while True:
            try:
                self.get("/v1/status/leader")
                return
            except OSError:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.05)

    def get(self, path):
        with urllib.request.urlopen(self.url + path, timeout=10) as response:
            return response.read()

    def put(self, path, body=None):
        data = json.dumps(body).encode() if body is not None else b""
        urllib.request.urlopen(
            urllib.request.Request(self.url + path, data=data, method="PUT"), timeout=10
        ).close()

    def register(self, name, **more):
        self.put("/v1/agent/service/register", {"Name": name, "Port": 80, **more})

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0, self.log.read_text()


@pytest.fixture
def agent(tmp_path):
    agent = Agent(tmp_path)
    yield agent
    agent.stop()


@pytest.fixture
def browser(tmp_path):
    with Browser(tmp_path / "profile") as browser:
        yield browser


def keep(browser, name):
    """Leave a picture for people where they asked for one."""
    folder = os.environ.get("WAYPOST_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        browser.screenshot(Path(folder) / name)


def names(browser):
    return browser.run(
        "return [...document.querySelectorAll('details .name')].map((one) => one.textContent)"
    )


def test_services_are_shown_and_followed_live(agent, browser):
    agent.register("web", Tags=["http", "v1"], Meta={"zone": "a"}, Check={"TTL": "60s"})
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelector('#live').dataset.state === 'on'")
    assert names(browser) == ["consul", "web"]
    agent.register("db")
    browser.wait("return document.querySelectorAll('details').length === 3")
    assert browser.run(
        "return document.querySelector('[data-service=web] .health .critical') !== null"
    )
    agent.put("/v1/agent/check/pass/service:web?note=all%20fine")
    browser.wait("return document.querySelector('[data-service=web] .health .passing') !== null")
    browser.run("document.querySelector('[data-service=web] summary').click()")
    browser.wait("return document.querySelector('[data-service=web]').open")
    assert "all fine" in browser.text()
    keep(browser, "live.png")
    agent.put("/v1/agent/service/deregister/db")
    browser.wait("return document.querySelectorAll('details').length === 2")
    assert browser.run("return document.querySelector('[data-service=web]').open"), (
        "an open service stays open"
    )
    assert browser.complaints() == []


def test_keyboard_language_and_theme(agent, browser):
    agent.register("web")
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelectorAll('details').length === 2")
    browser.keys("/")
    assert browser.run("return document.activeElement.id") == "filter"
    browser.keys("w", "e")
    browser.wait("return document.querySelectorAll('details').length === 1")
    browser.keys("\ue00c")
    browser.wait("return document.querySelectorAll('details').length === 2")
    browser.run("document.querySelector('#language').click()")
    assert "服务" in browser.text()
    browser.run("document.querySelector('#theme').click()")
    theme = browser.run("return document.documentElement.dataset.theme")
    keep(browser, "chinese.png")
    browser.open(f"{agent.url}/ui/")
    assert browser.run("return document.documentElement.dataset.theme") == theme, (
        "the choice is remembered"
    )
    assert browser.run("return document.documentElement.lang") == "zh-CN"


def test_foreign_text_stays_text(agent, browser):
    evil = "<img src=x onerror=document.title='broken'>"
    agent.register(
        "evil",
        ID=evil,
        Tags=[evil, "</script><script>document.title='broken'</script>"],
        Meta={"k": evil},
    )
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelectorAll('details').length === 2")
    browser.run("document.querySelectorAll('details').forEach((one) => one.open = true)")
    browser.wait("return document.body.innerText.includes('onerror')")
    assert browser.run("return document.title") == "waypost"
    assert browser.run("return document.querySelectorAll('main img').length") == 0


def test_it_says_when_the_agent_is_gone(agent, browser):
    browser.open(f"{agent.url}/ui/")
    browser.wait("return document.querySelector('#live').dataset.state === 'on'")
    agent.process.send_signal(signal.SIGTERM)
    browser.wait("return document.querySelector('#live').dataset.state === 'off'")
    assert "connection lost" in browser.text()


def test_the_files_are_served_with_a_strict_policy(agent):
    with urllib.request.urlopen(f"{agent.url}/ui/", timeout=10) as response:
        assert "default-src 'self'" in response.headers["Content-Security-Policy"]
        page = response.read().decode()
    elsewhere = page.replace("http://www.w3.org", "")
    assert "http://" not in elsewhere, "nothing comes from elsewhere"
    assert "https://" not in elsewhere
    with pytest.raises(urllib.error.HTTPError) as caught:
        agent.get("/ui/nope.js")
    with caught.value as error:
        assert error.code == 404
