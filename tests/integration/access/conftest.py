from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.integration.agent.process import AgentProcess, free_ports

ROOT = Path(__file__).parents[3]
TOKENS = """\
token-of-web,web-team,1001,"deployers"
token-of-ops,ops,1002,"ops"
"""


class Answer:
    """An answer of the agent."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Protected:
    """A real agent after `waypost init`, with a token file and an audit log."""

    def __init__(self, *flags: str, tokens: str = TOKENS) -> None:
        (self.https,) = free_ports(1)
        self.process = AgentProcess(*flags)
        self.folder = self.process.folder
        self.audit_log = self.folder / "audit" / "audit.log"
        token_file = self.folder / "tokens.csv"
        token_file.write_text(tokens)
        token_file.chmod(0o600)
        self.process.command += [
            f"-https-port={self.https}",
            f"-token-auth-file={token_file}",
            f"-audit-log-path={self.audit_log}",
        ]
        self.waypost("init", f"-data-dir={self.process.data}", "-advertise=127.0.0.1")
        for name in ("admin.conf", "operator.conf"):
            path = self.process.data / name
            text = path.read_text()
            path.write_text(text.replace("https://127.0.0.1:8501", self.url))

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.https}"

    @property
    def socket(self) -> Path:
        return self.process.data / "waypost.sock"

    @property
    def admin(self) -> str:
        return f"-kubeconfig={self.process.data / 'admin.conf'}"

    def waypost(
        self, *args: str, expect: int = 0, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; an AssertionError shows what it said."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("CONSUL_", "KUBECONFIG"))}
        done = subprocess.run(
            [sys.executable, "-m", "waypost", *args],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**clean, **(env or {})},
        )
        assert done.returncode == expect, f"{args}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def ask(
        self,
        method: str,
        target: str,
        *,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        over: str = "http",
    ) -> Answer:
        """Send one request over `http`, `https` or `unix`."""
        if over == "https":
            context = ssl._create_unverified_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                "127.0.0.1", self.https, context=context, timeout=10
            )
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.process.http, timeout=10)
        if over == "unix":
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.connect(str(self.socket))
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        try:
            connection.request(method, target, body=data, headers=dict(headers or {}))
            answer = connection.getresponse()
            return Answer(answer.status, dict(answer.getheaders()), answer.read())
        finally:
            connection.close()

    def events(self) -> list[dict[str, Any]]:
        """Return the audit log so far."""
        if not self.audit_log.exists():
            return []
        return [json.loads(line) for line in self.audit_log.read_text().splitlines()]

    def event(self, audit_id: str, *, within_s: float = 5.0) -> dict[str, Any]:
        """Return the last event of a request, once it is written."""
        import time

        deadline = time.monotonic() + within_s
        while True:
            found = [one for one in self.events() if one["auditID"] == audit_id]
            if found:
                return found[-1]
            assert time.monotonic() < deadline, f"no event {audit_id}: {self.events()[-3:]}"
            time.sleep(0.02)


@pytest.fixture(scope="module")
def agent() -> Iterator[Protected]:
    one = Protected()
    try:
        one.process.start()
        yield one
    finally:
        one.process.close()
