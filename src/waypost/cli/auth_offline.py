"""Questions about access answered from a data directory, without an agent: who may read it may know what is in it."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import msgspec

from waypost.access.authn.local import unix_peer
from waypost.access.gate import ExposureAuthorizer
from waypost.agent.access import AccessControl, load_pki
from waypost.agent.access_config import AccessConfig
from waypost.base.clock import SystemClock
from waypost.base.errors import WaypostError
from waypost.cli.agent_flags import CommandFailed
from waypost.client.settings import Overrides, settings_from
from waypost.state.state import State
from waypost.store.open import make_engine
from waypost.surfaces.access.routes import AccessRoutes
from waypost.surfaces.http.message import Head, Headers, Peer, Request


def subject_of(kubeconfig: str, *, context: str = "") -> dict[str, Any]:
    """Return the part of a question that says: whoever shows the credential of a kubeconfig file. Raises Malformed."""
    found = settings_from({}, overrides=Overrides(kubeconfig=kubeconfig, context=context))
    if found.token:
        return {"token": found.token}
    # The key comes after the certificate, and stays here.
    pem = found.tls.client_pem.decode("ascii", "replace")
    certificate, end, _ = pem.partition("-----END CERTIFICATE-----")
    if not end:
        raise CommandFailed(f"{kubeconfig}: holds neither a token nor a client certificate")
    return {"certificate": certificate + end + "\n"}


def ask_offline(data_dir: Path, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    """Return what an agent of this data directory would answer its operator. Raises CommandFailed, Unavailable.

    Settings of the agent besides Node, RBAC and the keys of the directory are not known here.
    """
    if not (data_dir / "store").exists():
        raise CommandFailed(f"{data_dir}: there is no store of an agent in it")
    try:
        return asyncio.run(_ask(data_dir, path, body))
    except WaypostError as exc:
        raise CommandFailed(f"{exc}; ask the running agent without -data-dir") from exc


async def _ask(data_dir: Path, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
    clock = SystemClock()
    engine = make_engine(f"sqlite:{data_dir}/store", clock=clock)
    await engine.open()
    try:
        state = State(engine)
        await state.load()
        access = AccessControl(
            state.view,
            exposure=ExposureAuthorizer(),
            keys=load_pki(data_dir),
            clock=clock,
            rng=random.SystemRandom(),
            config=AccessConfig(),
        )
        operator = unix_peer(os.geteuid(), os.geteuid())
        routes = AccessRoutes(access.questions(), identify=lambda _peer: operator, clock=clock)
        request = Request(
            Head(
                method="GET" if body is None else "POST",
                target=f"/v1/waypost/auth/{path}".encode(),
                headers=Headers(),
            ),
            body=b"" if body is None else json.dumps(body).encode(),
            peer=Peer(listener="unix", is_unix=True, uid=os.geteuid()),
            arrived_s=0.0,
        )
        handler = {
            "explain": routes.explain,
            "who-can": routes.who_can,
            "lint": routes.lint,
        }[path]
        answer = await handler(request)
    finally:
        await engine.close()
    found: dict[str, Any] = msgspec.json.decode(answer.body)
    return found
