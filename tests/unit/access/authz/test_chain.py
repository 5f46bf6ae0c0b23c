"""The chain as the gate's authorizer, and ABAC files that cannot be read."""

from __future__ import annotations

import pytest

from waypost.access.actor import Actor
from waypost.access.authz.abac import parse_policies
from waypost.access.authz.chain import Chain
from waypost.access.authz.decision import Step
from waypost.access.authz.fixed import AlwaysAllow, AlwaysDeny
from waypost.access.gate import Attributes, Gate
from waypost.base.errors import Forbidden, Malformed

ANN = Actor(user="ann")
ASKED = Attributes("update", "services", "web")


class Remote:
    """Answers only when asked with patience."""

    name = 'Webhook "w"'

    def __init__(self, step: Step | None) -> None:
        self.step = step
        self.known: Step | None = None
        self.asked = 0

    def authorize(self, _actor: Actor, _asked: Attributes) -> Step | None:
        return self.known

    async def resolve(self, _actor: Actor, _asked: Attributes) -> Step:
        self.asked += 1
        assert self.step is not None
        self.known = self.step
        return self.step


def _step(verdict, reason="", error=""):
    return Step(authorizer='Webhook "w"', verdict=verdict, reason=reason, error=error)


async def test_what_a_webhook_has_not_said_is_refused_until_it_was_asked():
    webhook = Remote(_step("allow", "yes"))
    chain = Chain([AlwaysDeny(), webhook])
    gate = Gate(chain)
    assert chain.authorize(ANN, ASKED) is None
    with pytest.raises(Forbidden, match="has not been asked"):
        gate.admit(ANN, ASKED)
    decision = await chain.resolve(ANN, ASKED)
    assert decision.allowed
    assert decision.reason == "yes"
    assert [step.authorizer for step in decision.trace] == ["AlwaysDeny", 'Webhook "w"']
    gate.admit(ANN, ASKED)
    assert webhook.asked == 1


async def test_nobody_is_asked_after_a_decision():
    webhook = Remote(None)
    assert (await Chain([AlwaysAllow(), webhook]).resolve(ANN, ASKED)).allowed
    assert webhook.asked == 0
    boss = Actor(user="boss", groups=("system:masters",))
    assert (await Chain([webhook]).resolve(boss, ASKED)).allowed
    assert webhook.asked == 0


async def test_a_failing_webhook_is_a_fault_unless_somebody_allows():
    failing = Remote(_step("no-opinion", error="connection refused"))
    decision = await Chain([failing, AlwaysDeny()]).resolve(ANN, ASKED)
    assert decision.http_status == 500
    assert decision.error == "connection refused"
    assert decision.review_status == {
        "allowed": False,
        "reason": "Everything is forbidden.",
        "evaluationError": "connection refused",
    }
    assert (await Chain([failing, AlwaysAllow()]).resolve(ANN, ASKED)).http_status == 200


def test_reasons_of_all_are_joined():
    chain = Chain([AlwaysDeny(), AlwaysDeny()])
    assert chain.decide(ANN, ASKED).reason == "Everything is forbidden.\nEverything is forbidden."
    assert chain.names == ("AlwaysDeny", "AlwaysDeny")


def test_an_empty_chain_refuses():
    decision = Chain([]).authorize(ANN, ASKED)
    assert decision is not None
    assert (decision.verdict, decision.http_status) == ("no-opinion", 403)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n{bad", "policy:2: "),
        ('{"user":"alice"}', 'policy:1: expected apiVersion "abac.authorization.kubernetes.io'),
        ('#\n\n{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{"user":1}}', "policy:3: "),
    ],
)  # fmt: skip
def test_a_bad_abac_line_is_told_with_its_number(text: str, said: str):
    with pytest.raises(Malformed) as raised:
        parse_policies(text, source="policy")
    assert str(raised.value).startswith(said)
