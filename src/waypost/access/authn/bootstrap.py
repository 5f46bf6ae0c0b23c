"""Bootstrap tokens: `id.secret`, a secret of `kube-system`, an identity for machines that join.

Source: kube "Authenticating with Bootstrap Tokens", kubeadm `token`. The rules are pure functions; who stores the
secret is up to the caller.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import random
import re
import string
from typing import Any, Final

import msgspec

from waypost.access.authn.kube_objects import find_secret, time_s
from waypost.access.authn.records import Accepted, Identity, Objects, Skipped, Verdict
from waypost.base.errors import Malformed

NAMESPACE: Final = "kube-system"
SECRET_TYPE: Final = "bootstrap.kubernetes.io/token"  # noqa: S105  (a type's name)
SECRET_PREFIX: Final = "bootstrap-token-"  # noqa: S105
BOOTSTRAPPERS: Final = "system:bootstrappers"
DEFAULT_GROUP: Final = "system:bootstrappers:kubeadm:default-node-token"
DEFAULT_TTL_S: Final = 24 * 3600.0
USAGES: Final = ("authentication", "signing")
_ALPHABET: Final = string.digits + string.ascii_lowercase
_TOKEN: Final = re.compile(r"([a-z0-9]{6})\.([a-z0-9]{16})")
_ID: Final = re.compile(r"[a-z0-9]{6}")
_GROUP: Final = re.compile(r"system:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]")


class BootstrapToken(msgspec.Struct, frozen=True):
    """The two halves: `id` is public, `secret` is not, and does not show in `repr`."""

    id: str
    secret: str

    @property
    def text(self) -> str:
        """The token as it is presented: `id.secret`."""
        return f"{self.id}.{self.secret}"

    @property
    def secret_name(self) -> str:
        """The name of the secret that holds it."""
        return SECRET_PREFIX + self.id

    def __repr__(self) -> str:
        return f"BootstrapToken(id={self.id!r}, secret=***)"


def parse_token(text: str) -> BootstrapToken:
    """Return the parts of `id.secret`. Raises Malformed, without the text, which may be nearly a secret."""
    found = _TOKEN.fullmatch(text)
    if found is None:
        raise Malformed(
            "the bootstrap token is not of the form [a-z0-9]{6}.[a-z0-9]{16}, "
            "such as abcdef.0123456789abcdef"
        )
    return BootstrapToken(found[1], found[2])


def parse_token_id(text: str) -> str:
    """Return the id of a token, or of what is an id already. Raises Malformed."""
    if _ID.fullmatch(text):
        return text
    return parse_token(text).id


def generate_token(rng: random.Random) -> BootstrapToken:
    """Return a new token. `rng` must be a source of secrets: `random.SystemRandom()`."""
    return BootstrapToken(
        "".join(rng.choices(_ALPHABET, k=6)), "".join(rng.choices(_ALPHABET, k=16))
    )


def check_group(group: str) -> None:
    """Raise Malformed if `group` may not be given to a bootstrap token."""
    if not _GROUP.fullmatch(group):
        raise Malformed(
            f'bootstrap group "{group}" is invalid (must match \\Asystem:bootstrappers:[a-z0-9:-]{{0,255}}[a-z0-9]\\z)'
        )


def token_secret(
    token: BootstrapToken,
    *,
    expires_s: float | None,
    groups: tuple[str, ...] = (DEFAULT_GROUP,),
    usages: tuple[str, ...] = USAGES,
    description: str = "",
) -> dict[str, Any]:
    """Return the secret (a kube object as JSON values) that makes `token` valid until `expires_s`.

    Raises Malformed for groups and usages that are not allowed.
    """
    for group in groups:
        check_group(group)
    for usage in usages:
        if usage not in USAGES:
            raise Malformed(f'unknown usage "{usage}": known are {", ".join(USAGES)}')
    values = {"token-id": token.id, "token-secret": token.secret}
    if description:
        values["description"] = description
    if expires_s is not None:
        values["expiration"] = dt.datetime.fromtimestamp(int(expires_s), dt.UTC).strftime(
            "%Y-%m-%dT%H:%M:%SZ"
        )
    values |= {f"usage-bootstrap-{usage}": "true" for usage in usages}
    if groups:
        values["auth-extra-groups"] = ",".join(groups)
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": token.secret_name, "namespace": NAMESPACE},
        "type": SECRET_TYPE,
        "data": {key: base64.b64encode(one.encode()).decode() for key, one in values.items()},
    }


class BootstrapTokens:
    """Accepts tokens whose secret is in `kube-system`. Everything wrong counts as "not a token of mine", as in kube."""

    name = "bootstrap token"

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def authenticate_token(
        self, token: str, *, audiences: tuple[str, ...], now_s: float
    ) -> Verdict:
        """Return `system:bootstrap:ID`, looked up afresh each time: deleting the secret ends the token at once."""
        del audiences
        found = _TOKEN.fullmatch(token)
        if found is None:
            return Skipped("not of the form of a bootstrap token")
        shown = BootstrapToken(found[1], found[2])
        secret = find_secret(self._objects, NAMESPACE, shown.secret_name)
        if secret is None or secret.type != SECRET_TYPE:
            return Skipped(f"no bootstrap token with the id {shown.id}")
        known = secret.value("token-secret")
        # Bytes, because a stored value may hold anything.
        matches = hmac.compare_digest(known.encode(), shown.secret.encode())
        if not matches or not known or secret.value("token-id") != shown.id:
            return Skipped(f"wrong secret for the bootstrap token {shown.id}")
        problem = ""
        expiration = secret.value("expiration")
        expires_s = time_s(expiration) if expiration else None
        groups = [one for one in secret.value("auth-extra-groups").split(",") if one]
        if secret.metadata.deletion_timestamp is not None:
            problem = "is being deleted"
        elif expiration and (expires_s is None or now_s >= expires_s):
            problem = f"has expired at {expiration}" if expires_s else "has no readable expiration"
        elif secret.value("usage-bootstrap-authentication") != "true":
            problem = "is not for authentication"
        elif not all(_GROUP.fullmatch(group) for group in groups):
            problem = "names a group that is not allowed"
        if problem:
            return Skipped(f"the bootstrap token {shown.id} {problem}")
        return Accepted(
            identity=Identity(
                user=f"system:bootstrap:{shown.id}",
                # kube sorts them, each once.
                groups=tuple(sorted({BOOTSTRAPPERS, *groups})),
                expires_s=expires_s,
            ),
            detail=f"secret {NAMESPACE}/{shown.secret_name}",
            is_steady=True,
        )


def sign_detached(content: str, token: BootstrapToken) -> str:
    """Return the detached JWS of `content`, as cluster-info carries it for each token. Source: RFC 7515, appendix F."""
    header = _unpadded(f'{{"alg":"HS256","kid":"{token.id}"}}'.encode())
    signature = hmac.new(
        token.secret.encode(), f"{header}.{_unpadded(content.encode())}".encode(), hashlib.sha256
    ).digest()
    return f"{header}..{_unpadded(signature)}"


def is_signed(content: str, signature: str, token: BootstrapToken) -> bool:
    """Tell whether `signature` is the detached JWS of `content` made with `token`."""
    expected = sign_detached(content, token)
    return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogatepass"))


def _unpadded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
