"""Configurations, and webhooks that answer without a network."""

from __future__ import annotations

import base64
import json
import random

import msgspec
import pytest

from waypost.access.actor import Actor
from waypost.access.admission import Admission, settled
from waypost.base.errors import Unavailable
from waypost.model.object import Object

GROUP = "admissionregistration.k8s.io"
RULE = {"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"], "operations": ["*"]}
ALICE = Actor(user="alice", groups=("dev", "system:authenticated"))


def hook(name, **more):
    """Return one webhook of a configuration."""
    return {
        "name": name,
        "clientConfig": {"url": f"https://{name}/"},
        "rules": [RULE],
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Fail",
        **more,
    }


class World:
    """Stored objects, and what each webhook answers to a request: a response, bytes, or an error."""

    def __init__(self):
        self.tables = {}
        self.answers = {}
        self.asked = []
        self.admission = Admission(self, caller=self, rng=random.Random(1))

    # -- what is stored

    def object(self, group, resource, namespace, name):
        return self.object_table(group, resource).get((namespace, name))

    def object_table(self, group, resource):
        return self.tables.get((group, resource), {})

    def store(self, group, resource, name, document):
        found = Object(
            group=group, resource=resource, name=name, body=msgspec.json.encode(document)
        )
        self.tables.setdefault((group, resource), {})["", name] = found

    def configure(self, kind, name, *hooks):
        resource = f"{kind}webhookconfigurations"
        self.store(GROUP, resource, name, {"metadata": {"name": name}, "webhooks": list(hooks)})

    # -- deciding

    async def record(self, actor, new, old, **more):
        """Have a record admitted, as a decision about nothing else would."""
        passing = self.admission.open(actor)

        async def decide():
            return passing.record(new, old, **more)

        return await settled(decide)

    async def removal(self, actor, *gone):
        passing = self.admission.open(actor)

        async def decide():
            return passing.removal(*gone)

        await settled(decide)

    # -- the other end

    async def call(self, webhook, body):
        if webhook.problem:
            raise Unavailable(webhook.problem)
        request = json.loads(body)["request"]
        self.asked.append((webhook.name, request))
        answer = self.answers.get(webhook.name, {"allowed": True})
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, bytes):
            return answer
        response = {"uid": request["uid"], **answer}
        review = {
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "response": response,
        }
        return json.dumps(review).encode()

    @property
    def names(self):
        """Who has been asked, in order."""
        return [name for name, _ in self.asked]


def patch(*operations):
    """Return a response that changes the object."""
    encoded = base64.b64encode(json.dumps(operations).encode()).decode()
    return {"allowed": True, "patchType": "JSONPatch", "patch": encoded}


@pytest.fixture
def world():
    return World()
