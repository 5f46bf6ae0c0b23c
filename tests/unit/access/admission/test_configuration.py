from __future__ import annotations

import base64
import random

import msgspec
import pytest

from waypost.access.admission.configuration import configuration_faults, parse_configuration
from waypost.access.admission.webhook import WebhookClient
from waypost.base.errors import Unavailable
from waypost.model.object import Object

from .conftest import hook


def configured(*hooks):
    body = msgspec.json.encode({"webhooks": list(hooks)})
    found = Object(group="g", resource="r", name="c", body=body)
    return parse_configuration(found, mutates=True)


def client(**config):
    return hook("a.b.c", clientConfig=config)


SERVICE = {"name": "s", "namespace": "n"}


@pytest.mark.parametrize(
    ("webhook", "field", "text"),
    [
        (client(), "clientConfig", "exactly one of url or service is required"),
        (client(url="https://a/", service=SERVICE), "clientConfig", "exactly one of url or service"),
        (client(url="http://a/"), "clientConfig.url", "'https' is the only allowed URL scheme"),
        (client(url="https:///x"), "clientConfig.url", "host must be specified"),
        (client(url="https://u:p@a/"), "clientConfig.url", "user information is not permitted"),
        (client(url="https://a/?x=y"), "clientConfig.url", "query parameters are not permitted"),
        (client(url="https://a/#x"), "clientConfig.url", "fragments are not permitted"),
        (client(url="https://a:b/"), "clientConfig.url", "must be a valid URL"),
        (client(service={"namespace": "n"}), "clientConfig.service.name", "name is required"),
        (client(url="https://a/", caBundle="!"), "clientConfig.caBundle", "unable to load root"),
        (client(url="https://a/", caBundle=base64.b64encode(b"x").decode()),
         "clientConfig.caBundle", "unable to load root"),
        (hook("a.b.c", timeoutSeconds=0), "timeoutSeconds", "between 1 and 30"),
        (hook("a.b.c", timeoutSeconds=31), "timeoutSeconds", "between 1 and 30"),
        (hook("a.b.c", admissionReviewVersions=["v1beta1"]), "admissionReviewVersions", "v1"),
        (hook("a.b.c", matchConditions=[{"name": "x", "expression": "true"}]),
         "matchConditions", "CEL"),
    ],
)  # fmt: skip
def test_faults(webhook, field, text):
    (fault,) = configuration_faults({"webhooks": [webhook]})
    assert fault.field == f"webhooks[0].{field}"
    assert text in fault.message
    # What is stored all the same is never asked.
    (parsed,) = configured(webhook)
    assert text in parsed.problem


def test_a_good_configuration_has_no_faults():
    assert configuration_faults({"webhooks": [hook("d.e.f"), client(service=SERVICE)]}) == ()
    assert configuration_faults({}) == ()


def test_names_are_distinct():
    (fault,) = configuration_faults({"webhooks": [hook("a.b.c"), hook("a.b.c")]})
    assert (fault.field, fault.reason) == ("webhooks[1].name", "FieldValueDuplicate")


def test_what_is_parsed():
    (found,) = configured(
        hook(
            "a.b.c",
            clientConfig={"service": SERVICE | {"path": "/p", "port": 8443}},
            failurePolicy="Ignore",
            timeoutSeconds=3,
            sideEffects="Some",
            reinvocationPolicy="IfNeeded",
        )
    )
    assert found.service is not None
    assert (found.service.host, found.service.path, found.service.port) == ("s.n.svc", "/p", 8443)
    assert (found.may_fail, found.timeout_s, found.dry_run_safe, found.reinvoked) == (
        True,
        3.0,
        False,
        True,
    )
    assert (found.configuration, found.mutates, found.problem) == ("c", True, "")


async def test_who_has_no_instance_is_not_reached(rng_client):
    (found,) = configured(client(service=SERVICE))
    with pytest.raises(Unavailable, match="service 's' has no healthy instance"):
        await rng_client.call(found, b"{}")


@pytest.fixture
async def rng_client():
    one = WebhookClient(lambda service: [], rng=random.Random(1))
    yield one
    await one.close()
