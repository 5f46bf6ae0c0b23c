"""The kube-style API over a store in memory, without sockets."""

from __future__ import annotations

import asyncio
import json
import random
from contextlib import suppress

import pytest

from waypost.access.actor import AUTHENTICATED, MASTERS, Actor
from waypost.access.authn.chain import Chain as Authenticators
from waypost.access.authn.records import Authentication
from waypost.access.authn.service_account import ServiceAccountTokens, TokenIssuer
from waypost.access.authz.bootstrap import default_policy, node_rules
from waypost.access.authz.chain import Chain
from waypost.access.authz.node import NodeAuthorizer
from waypost.access.authz.rbac import RbacAuthorizer
from waypost.access.gate import Gate
from waypost.access.pki.keys import generate_key
from waypost.base.clock import SystemClock
from waypost.base.errors import WaypostError
from waypost.domain.object import Objects
from waypost.state.state import State
from waypost.store.memory import MemoryEngine
from waypost.surfaces.http.message import Head, Headers, Peer, Request
from waypost.surfaces.http.router import Router
from waypost.surfaces.kube.access import Access
from waypost.surfaces.kube.api import KubeApi

PEER = Peer(listener="https", address="192.0.2.7", is_tls=True)
ADMIN = Actor(user="kubernetes-admin", groups=(MASTERS, AUTHENTICATED))
ISSUER = "https://kubernetes.default.svc"


class Answer:
    """A status, the headers and the body."""

    def __init__(self, response):
        self.response = response
        self.status = response.status
        self.headers = dict(response.headers)
        self.type = response.content_type
        self.text = response.body.decode()

    @property
    def json(self):
        return json.loads(self.text)

    def __repr__(self):
        return f"{self.status} {self.text}"


class Held:
    """What escalation checks ask."""

    def __init__(self, chain, rbac):
        self.chain = chain
        self.rbac = rbac

    def may(self, actor, asked):
        return self.chain.decide(actor, asked).allowed

    def rules(self, actor, namespace):
        return self.rbac.index.rules(actor, namespace)

    def role(self, kind, namespace, name):
        return self.rbac.index.role(kind, namespace, name)


class Api:
    """The surface and who talks to it."""

    def __init__(self, state):
        self.state = state
        self.clock = SystemClock()
        rng = random.Random(1)
        rbac = RbacAuthorizer(state.view)
        self.chain = Chain([NodeAuthorizer(node_rules()), rbac])
        self.objects = Objects(
            state, Gate(self.chain), clock=self.clock, rng=rng, held=Held(self.chain, rbac)
        )
        key = generate_key()
        tokens = ServiceAccountTokens(state.view, keys=[key.public_key()], issuers=(ISSUER,))
        issuer = TokenIssuer(key, issuer=ISSUER)
        self.objects.token_data = lambda owner: {
            "token": issuer.issue_legacy(
                namespace=owner.namespace, name=owner.name, uid=owner.uid, secret=owner.secret
            ).encode(),
            "namespace": owner.namespace.encode(),
        }
        access = Access(
            authorizers=self.chain,
            tokens=Authenticators(tokens=[tokens]),
            policy=lambda: rbac.index,
            issuer=issuer,
            token_keys=lambda: (key.public_key(),),
            external_address="192.0.2.1:8501",
        )
        self.api = KubeApi(self.objects, access, version="0", clock=self.clock, rng=rng)
        self.router = Router(self.api.routes())

    def request(self, method, target, body=None, *, actor=ADMIN, **headers):
        """Return a request; `content_type="x"` is the header Content-Type."""
        fields = [
            (name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()
        ]
        head = Head(method=method, target=target.encode(), headers=Headers(fields))
        data = (
            b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        )
        request = Request(head, body=data, peer=PEER, arrived_s=0.0)
        request.identity = Authentication(actor=actor)
        return request

    async def answer(self, request):
        try:
            answer = self.router.answer(request)
            return answer if hasattr(answer, "status") else await answer
        except WaypostError as error:
            return self.router.failed(request, error)

    async def ask(self, method, target, body=None, *, actor=ADMIN, **headers):
        """Ask and return the whole answer."""
        return Answer(await self.answer(self.request(method, target, body, actor=actor, **headers)))

    async def ok(self, method, target, body=None, *, actor=ADMIN, **headers):
        """Ask what must succeed; return the document."""
        answer = await self.ask(method, target, body, actor=actor, **headers)
        assert answer.status in (200, 201), answer
        return answer.json

    async def refused(self, method, target, body=None, *, actor=ADMIN, **headers):
        """Ask what must be refused with a Status; return (code, message)."""
        answer = await self.ask(method, target, body, actor=actor, **headers)
        document = answer.json
        assert answer.status == document["code"], answer
        assert (document["kind"], document["status"]) == ("Status", "Failure")
        return document["code"], document["message"]

    async def watch(self, target, *, actor=ADMIN, **headers):
        """Start a watch; return the stream of its events."""
        response = await self.answer(self.request("GET", target, actor=actor, **headers))
        assert response.stream is not None, response
        return response.stream

    @staticmethod
    def user(name, *groups):
        """Return somebody who has authenticated."""
        return Actor(user=name, groups=(*groups, AUTHENTICATED))

    @staticmethod
    async def events(stream, count):
        """Return the next events of a watch as (type, name or code)."""
        found = []
        for _ in range(count):
            event = json.loads(await asyncio.wait_for(anext(stream), 5))
            metadata = event["object"].get("metadata", {})
            found.append((event["type"], metadata.get("name") or event["object"].get("code")))
        return found


@pytest.fixture
async def api():
    """An API with the default namespaces and policy."""
    engine = MemoryEngine(clock=SystemClock())
    await engine.open()
    state = State(engine)
    await state.load()
    task = asyncio.create_task(state.run())
    try:
        running = Api(state)
        await running.objects.ensure_namespaces()
        await running.objects.reconcile(default_policy())
        yield running
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await engine.close()
