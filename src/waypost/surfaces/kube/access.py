"""What the surface needs of access control: who is asking, may they, and the parts that answer reviews."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from waypost.access.actor import Actor
from waypost.access.authn import impersonation
from waypost.access.authn.chain import Chain as AuthenticatorChain
from waypost.access.authn.jws import PublicKey
from waypost.access.authn.service_account import TokenIssuer
from waypost.access.authz.attributes import request_attributes
from waypost.access.authz.chain import Chain
from waypost.access.authz.decision import Decision
from waypost.access.authz.rbac import RbacIndex
from waypost.access.authz.text import action
from waypost.access.gate import Attributes
from waypost.base.errors import Malformed
from waypost.base.quoting import quoted
from waypost.surfaces.http.message import Request
from waypost.surfaces.kube.answers import Plain
from waypost.wire.kube import status


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of access control that this surface uses."""

    authorizers: Chain
    tokens: AuthenticatorChain | None = None
    """Answers token reviews; None where there are no tokens."""
    policy: Callable[[], RbacIndex] | None = None
    """The roles and bindings of this moment; None where RBAC is not one of the authorizers."""
    issuer: TokenIssuer | None = None
    """Makes service-account tokens; None without a key."""
    token_keys: Callable[[], tuple[PublicKey, ...]] = tuple
    """What verifies service-account tokens at this moment, for others to know."""
    external_address: str = ""
    """`HOST:PORT` at which others reach this server, whatever name a request came by."""
    jwks_uri: str = ""
    """Where others are told to find the keys; empty: on this server, at its external address."""
    audiences: tuple[str, ...] = ("https://kubernetes.default.svc",)
    """Whom a token is meant for when nobody is named."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """A request that has been let in."""

    actor: Actor
    asked: Attributes
    decision: Decision


async def admit(request: Request, access: Access) -> Caller:
    """Impersonate and authorize who has been authenticated by the `Guard`. Raises ApiError (400, 401, 403) or Plain (500)."""
    target = request.target.decode("latin-1")
    try:
        asked = request_attributes(request.method, target)
    except Malformed as error:
        text = f'Internal Server Error: "{request.path}": failed to create RequestInfo: {error}\n'
        raise Plain(500, text) from error
    identity = request.identity
    if identity is None or identity.actor is None:
        raise status.unauthorized()
    actor = await _impersonated(request, identity.actor, access)
    decision = await decide(access.authorizers, actor, asked)
    if not decision.allowed:
        raise _refusal(request, actor, asked, decision)
    return Caller(actor=actor, asked=asked, decision=decision)


async def decide(authorizers: Chain, actor: Actor, asked: Attributes) -> Decision:
    """Return the chain's decision, asking over the network only if need be."""
    decision = authorizers.authorize(actor, asked)
    return decision if decision is not None else await authorizers.resolve(actor, asked)


async def _impersonated(request: Request, actor: Actor, access: Access) -> Actor:
    try:
        wish = impersonation.impersonation(request.headers, requester=actor)
    except Malformed as error:
        raise status.bad_request(str(error)) from error
    if wish is None:
        return actor
    for asked in wish.attributes:
        decision = await decide(access.authorizers, actor, asked)
        if not decision.allowed:
            raise _refusal(request, actor, asked, decision)
    return wish.actor


def _refusal(
    request: Request, actor: Actor, asked: Attributes, decision: Decision
) -> status.ApiError | Plain:
    if decision.http_status == 500:
        text = f'Internal Server Error: "{request.raw_path}": {decision.error}\n'
        return Plain(500, text)
    detail = f"User {quoted(actor.user)} cannot {action(asked)}"
    if decision.reason:
        detail += f": {decision.reason}"
    if asked.path:
        return status.forbidden_path(_escaped(detail))
    return status.forbidden(asked.resource, asked.name, _escaped(detail), group=asked.group)


def _escaped(text: str) -> str:
    # The original escapes its message as if it were to be shown in a page; clients compare texts.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
