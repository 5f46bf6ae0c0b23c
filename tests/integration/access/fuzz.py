"""Strangers of every kind: certificates, tokens, request lines, header fields and bodies that nobody honest would send.

Everything is drawn from one seeded generator, so that a run can be repeated. What is drawn is never a good credential;
where a mutation happens to leave a credential as it was, it is thrown away.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import hmac
import json
import random
import re
import socket
import ssl
import string
from typing import Any, NamedTuple
from urllib.parse import quote

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import SSL, crypto

MARK = "hidden-mark-4711"
"""Stands in every value that a stranger must not see."""

OPEN = re.compile(
    r"/v1/(catalog|health|status|coordinate|internal/ui|query)(/|$)|"
    r"/v1/agent/(services|checks|service/|health/)|"
    r"/v1/waypost/auth/whoami$|"
    r"/(healthz|livez|readyz|version)(/|$)|/ui(/|$)|/$|/favicon"
)
"""What may be read without a credential (docs/reference/authorization.md), as a decoded path."""
CLOSED = (
    "/v1/kv/secret/fuzz",
    "/v1/kv/?recurse",
    "/v1/kv/?keys",
    "/v1/agent/self",
    "/v1/agent/metrics",
    "/v1/agent/host",
    "/v1/agent/members",
    "/v1/session/list",
    "/v1/event/list",
    "/v1/operator/raft/configuration",
    "/v1/txn",
    "/v1/waypost/auth/lint",
    "/v1/waypost/auth/explain",
    "/v1/waypost/auth/who-can",
    "/v1/acl/tokens",
    "/api",
    "/api/v1",
    "/apis",
    "/api/v1/namespaces/default/secrets/fuzz",
    "/api/v1/namespaces/default/secrets",
    "/api/v1/secrets?watch=true",
    "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/cluster-admin",
    "/apis/authentication.k8s.io/v1/selfsubjectreviews",
    "/apis/authentication.k8s.io/v1/tokenreviews",
    "/apis/certificates.k8s.io/v1/certificatesigningrequests",
    "/openapi/v2",
    "/metrics",
    "/openid/v1/jwks",
    "/.well-known/openid-configuration",
)
OPENED = ("/v1/catalog/services", "/v1/health/service/web", "/v1/waypost/auth/whoami", "/version")
METHODS = ("GET", "GET", "GET", "PUT", "POST", "DELETE", "HEAD", "PATCH", "OPTIONS")
ODD_METHODS = ("get", "TRACE", "CONNECT", "PROPFIND", "MERGE", "SEARCH", "G\tET", "LINK", "GETT")


class Shot(NamedTuple):
    """What is sent on one connection."""

    data: bytes
    method: str
    path: str
    """Decoded, as far as the stranger knows it."""
    pair: tuple[bytes, tuple[bytes, ...], bytes] | None = None
    """Certificate, further certificates (DER) and key (PEM)."""
    is_tls: bool = False


class Secrets(msgspec.Struct, frozen=True):
    """What the stranger has got hold of: public things, and genuine credentials to bend."""

    static: str
    account_token: str
    bootstrap: str
    public_key_pem: bytes
    ca: x509.Certificate
    ca_key: Any
    admin: x509.Certificate
    admin_key_pem: bytes


class Strangers:
    """Draws shots."""

    def __init__(self, rng: random.Random, secrets: Secrets) -> None:
        self.rng = rng
        self.secrets = secrets
        self._own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._key_pem = _key_pem(self._key)
        self._fake_ca, self._fake_key = _lookalike(secrets.ca)

    # -- requests ------------------------------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        target: bytes,
        fields: list[tuple[bytes, bytes]],
        body: bytes | None = None,
    ) -> bytes:
        lines = [method.encode("latin-1") + b" " + target + b" HTTP/1.1", b"Host: localhost"]
        lines += [name + b": " + value for name, value in fields]
        if body is not None:
            lines.append(b"Content-Length: %d" % len(body))
        lines += [b"Connection: close", b"", b""]
        return b"\r\n".join(lines) + (body or b"")

    def place(self) -> str:
        return self.rng.choice(OPENED if self.rng.random() < 0.2 else CLOSED)

    def plain(self, fields: list[tuple[bytes, bytes]], **more: Any) -> Shot:
        """A request for a closed or open place that is as it should be, but for its fields."""
        rng = self.rng
        target, method = self.place(), rng.choice(METHODS)
        body = rng.choice((b"{}", b"x", b"")) if method in ("PUT", "POST", "PATCH") else None
        data = self.request(method, target.encode(), fields, body)
        return Shot(data, method, target.partition("?")[0], **more)

    # -- tokens --------------------------------------------------------------------------------------------------------

    def token_shot(self) -> Shot:
        token = self.token()
        rng = self.rng
        fields: list[tuple[bytes, bytes]] = []
        value = token.encode("utf-8", "surrogatepass")
        if not _is_field_value(value):
            value = quote(value, safe="").encode()
        way = rng.randrange(8)
        if way == 0:
            fields = [(b"X-Consul-Token", value)]
        elif way == 1:
            fields = [(b"Authorization", b"Basic " + base64.b64encode(b"admin:" + value[:2000]))]
        elif way == 2:
            # The first of several counts, and it is a bad one.
            target, method = self.place(), "GET"
            joint = "&" if "?" in target else "?"
            genuine = self.genuine()
            query = f"{joint}token={quote(token[:3000], errors='replace')}&token={genuine}"
            data = self.request(method, (target + query).encode(), [])
            return Shot(data, method, target.partition("?")[0])
        elif way == 3:
            genuine = self.genuine().encode()
            fields = [
                (b"Authorization", b"Bearer " + value),
                (b"Authorization", b"Bearer " + genuine),
            ]
        elif way == 4:
            spoiled = rng.choice((b"Bearer  ", b"Bearer\t", b"Token ", b"Bearer,", b"Bearer:", b""))
            fields = [(b"Authorization", spoiled + self.genuine().encode())]
        else:
            scheme = rng.choice((b"Bearer ", b"bearer ", b"BEARER "))
            fields = [(b"Authorization", scheme + value)]
        return self.plain(fields)

    def genuine(self) -> str:
        return self.rng.choice(self._all_genuine())

    def _all_genuine(self) -> tuple[str, ...]:
        return self.secrets.static, self.secrets.account_token, self.secrets.bootstrap

    def token(self) -> str:
        makers = (self._bent, self._jwt, self._jwt, self._noise)
        while True:
            token = self.rng.choice(makers)()
            if token and not self._is_good(token):
                return token

    def _is_good(self, token: str) -> bool:
        token = token.strip()
        if token.split(" ")[0] in self._all_genuine():
            return True
        parts, real = token.split("."), self.secrets.account_token.split(".")
        # Unused bits of the last letter change nothing.
        return len(parts) == 3 and [_loose(one) for one in parts] == [_loose(one) for one in real]

    def _bent(self) -> str:
        rng, text = self.rng, self.genuine()
        match rng.randrange(9):
            case 0:
                return text[: rng.randrange(len(text))]
            case 1:
                return text + rng.choice(("x", "\0", "%00", ".", "=", " ", "\u200b", "\n"))
            case 2:
                return text.swapcase()
            case 3:
                at = rng.randrange(len(text))
                return text[:at] + rng.choice(string.ascii_letters + ".-_") + text[at + 1 :]
            case 4:
                return text.replace("e", "е").replace("o", "о")  # letters of another alphabet
            case 5:
                return text[::-1]
            case 6:
                return text + "." + text
            case 7:
                return rng.choice((" ", "\t", "\ufeff")) + text
            case _:
                return text * rng.randrange(2, 20)

    def _jwt(self) -> str:
        rng = self.rng
        header_text, payload_text, signature = self.secrets.account_token.split(".")
        header = json.loads(_loose(header_text))
        payload = json.loads(_loose(payload_text))
        if rng.random() < 0.7:
            payload.update(
                rng.choice(
                    (
                        {"sub": "system:serviceaccount:kube-system:admin"},
                        {"exp": 2**62},
                        {"exp": 1e400 if rng.random() < 0.5 else -1},
                        {"aud": rng.choice(([], "*", None, {}, ["https://other"]))},
                        {"kubernetes.io": rng.choice((None, [], {}, {"namespace": "default"}))},
                        {"iss": rng.choice(("kubernetes/serviceaccount", "", None, 7, []))},
                        {"nbf": "now"},
                        {"a": "x" * rng.randrange(40_000)},
                    )
                )
            )
        kid = rng.choice(
            ("../../etc/passwd", "' or 1=1 --", None, 7, [], {}, header.get("kid"), "\0", "x" * 999)
        )
        match rng.randrange(9):
            case 0:
                header = {"alg": rng.choice(("none", "None", "NONE", "nOnE", "", None, 0, []))}
                return _join(header, payload, rng.choice((b"", b"x", _loose(signature))))
            case 1:
                # An HMAC with what everybody may know.
                public = self.secrets.public_key_pem
                key = rng.choice((public, public.strip(), b"", _der(public), b"secret"))
                algorithm = rng.choice(("HS256", "HS384", "HS512"))
                digest = {"HS256": "sha256", "HS384": "sha384", "HS512": "sha512"}[algorithm]
                start = _start({"alg": algorithm, "typ": "JWT", "kid": header.get("kid")}, payload)
                return f"{start}.{_part(hmac.new(key, start.encode(), digest).digest())}"
            case 2:
                header["kid"] = kid
                return _join(header, payload, _loose(signature))
            case 3:
                # Signed by somebody, who brings the key along.
                own = self._own.public_key().public_numbers()
                jwk = {
                    "kty": "RSA",
                    "n": _part(own.n.to_bytes(256, "big")),
                    "e": "AQAB",
                    "kid": header.get("kid"),
                }
                header.update(
                    rng.choice(({"jwk": jwk}, {"jku": "https://127.0.0.1:1/"}, {"x5c": ["eA=="]}))
                )
                start = _start(header, payload)
                return f"{start}.{_part(_sign_rsa(self._own, start))}"
            case 4:
                header["alg"] = rng.choice(("ES256", "ES384", "PS256", "RS512", "EdDSA", "RS256 "))
                forged = rng.choice((bytes(64), b"", bytes(256), b"\0" * 63 + b"\1"))
                return _join(header, payload, forged)
            case 5:
                header.update(
                    rng.choice(({"crit": ["b64"], "b64": False}, {"crit": []}, {"zip": "DEF"}))
                )
                return _join(header, payload, _loose(signature))
            case 6:
                return f"{header_text}.{_part(json.dumps(payload).encode())}.{signature}x"
            case 7:
                deep = b"[" * rng.randrange(1, 20_000)
                return f"{_part(deep)}.{payload_text}.{signature}"
            case _:
                deep = b'{"iss":' * rng.randrange(1, 8000)
                return f"{header_text}.{_part(deep)}.{signature}"

    def _noise(self) -> str:
        rng = self.rng
        size = rng.choice((1, 10, 100, 1000, 9000))
        alphabet = rng.choice((string.printable, "abc.-_", "é€𝄞\u0000\u202e", ".", "=", "/+"))
        return "".join(rng.choices(alphabet, k=rng.randrange(1, size + 1)))

    # -- request lines ---------------------------------------------------------------------------------------------------

    def path_shot(self) -> Shot:
        rng = self.rng
        target = self.place()
        path, _, query = target.partition("?")
        for _ in range(rng.randrange(1, 4)):
            path = self._bend(path)
        if rng.random() < 0.4:
            query = self._query(query)
        method = rng.choice(METHODS) if rng.random() < 0.85 else rng.choice(ODD_METHODS)
        sent = path + (f"?{query}" if query else "")
        data = sent.encode("utf-8", "surrogatepass")
        if rng.random() < 0.9:
            # As a client must write it; else as it is.
            data = re.sub(rb"[\x00-\x20\x7f-\xff]", lambda m: b"%%%02X" % m[0][0], data)
        fields = self.fields() if rng.random() < 0.3 else []
        body = b"{}" if method in ("PUT", "POST") else None
        return Shot(self.request(method, data or b"/", fields, body), method, _decoded(path))

    def _bend(self, path: str) -> str:
        rng = self.rng
        match rng.randrange(16):
            case 0:
                at = rng.randrange(len(path) or 1)
                return (
                    path[:at]
                    + "".join(f"%{one:02x}" for one in path[at : at + 1].encode())
                    + path[at + 1 :]
                )
            case 1:
                return path.replace("/", "%2f", rng.randrange(1, 4))
            case 2:
                return path.replace("/", "//", rng.randrange(1, 4))
            case 3:
                return path.replace("/", rng.choice(("/./", "/%2e/", "/x/../")), 2)
            case 4:
                return rng.choice(OPENED) + "/.." * rng.randrange(1, 6) + path
            case 5:
                return rng.choice(OPENED) + "/%2e%2e" * rng.randrange(1, 6) + path
            case 6:
                return path.swapcase()
            case 7:
                return path + rng.choice(
                    ("%00", "\0", "%0a", ";x=1", "%3f", "%23", "/", "%2f", " ", "\\")
                )
            case 8:
                return "http://localhost" + path
            case 9:
                return path.replace("/", "\\")
            case 10:
                return path + "/" + "x" * rng.choice((10, 1000, 9000, 60_000))
            case 11:
                return path.replace("%", "%25")
            case 12:
                return (
                    rng.choice(
                        ("*", "", "//", "/%", "/%zz", "/%ff%fe", "?", "#", "/..", "/ui/../..")
                    )
                    + path
                )
            case 13:
                return path.replace("e", "\uff45").replace("/", "\u2215", 1)
            case 14:
                return path.replace(
                    "v1", rng.choice(("v1beta1", "V1", "v01", "v1;", "watch", "proxy")), 1
                )
            case _:
                return rng.choice(("/ui", "/healthz", "/version", "/v1/catalog/services")) + path

    def _query(self, query: str) -> str:
        rng = self.rng
        parts = [query] if query else []
        tricks = (
            "token=", "token=bad&token=", "token", "stale", "consistent", "cached", "index=1&wait=1ms",
            "index=-1", "index=99999999999999999999", "wait=xx", "recurse", "keys", "raw", "watch=1",
            "watch=true&timeoutSeconds=1", "limit=-1", "limit=1&continue=%00", "fieldSelector=metadata.name=fuzz",
            "labelSelector=((", "dryRun=All", "dc=other", "ns=x", "near=_agent", "filter=" + "(" * 500,
            "filter=%00", "passing", "pretty", "a=%zz", "=", "&&&;;;", "as=admin", "timeout=0s",
            "resourceVersion=x&resourceVersionMatch=Exact", "%74oken=x", "TOKEN=x", "x" * 5000,
        )  # fmt: skip
        parts += rng.choices(tricks, k=rng.randrange(1, 5))
        return "&".join(parts)

    # -- header fields ----------------------------------------------------------------------------------------------------

    def field_shot(self) -> Shot:
        return self.plain(self.fields())

    def fields(self) -> list[tuple[bytes, bytes]]:
        rng = self.rng
        names = (
            b"Impersonate-User", b"Impersonate-Group", b"Impersonate-Uid", b"Impersonate-Extra-Scopes",
            b"Impersonate-Extra-%zz", b"Impersonate-Extra-", b"impersonate-user", b"X-Remote-User", b"X-Remote-Group",
            b"X-Remote-Extra-a", b"X-Remote-Uid", b"X-Forwarded-For", b"X-Forwarded-Client-Cert", b"X-Real-IP",
            b"Forwarded", b"X-Original-URL", b"X-Rewrite-URL", b"X-HTTP-Method-Override", b"X-SSL-Client-Cert",
            b"Authorization", b"X-Consul-Token", b"Proxy-Authorization", b"Cookie", b"Upgrade", b"Connection",
            b"Sec-WebSocket-Protocol", b"Accept", b"Accept-Encoding", b"Content-Type", b"Transfer-Encoding",
            b"Content-Length", b"Expect", b"Range", b"Host", b"Origin", b"User-Agent", b"If-None-Match", b"X" * 3000,
        )  # fmt: skip
        values = (
            b"admin", b"kubernetes-admin", b"system:masters", b"system:serviceaccount:kube-system:x", b"root", b"",
            b" ", b"127.0.0.1", b"/v1/kv/secret/fuzz", b"GET", b"chunked", b"0", b"-1", b"99999999999999999999",
            b"100-continue", b"websocket", b"base64url.bearer.authorization.k8s.io.eA", b"bytes=0-", b"\xff\xfe",
            b"a\0b", b"%00", b"\xe2\x80\xae", b"Bearer", b"Bearer ", b"Basic", b"Basic !!!", b"Basic Og==", b"gzip;q=x",
            b"application/vnd.kubernetes.protobuf", b"application/json;as=Table;v=v1;g=meta.k8s.io", b"x" * 5000,
        )  # fmt: skip
        count = rng.randrange(1, 6)
        return list(zip(rng.choices(names, k=count), rng.choices(values, k=count), strict=True))

    # -- certificates -----------------------------------------------------------------------------------------------------

    def certificate_shot(self) -> Shot:
        maker = self.rng.choice(
            (self._forged, self._forged, self._spoiled, self._mutated, self._mutated)
        )
        pair = None
        while pair is None:
            pair = maker()
        fields = self.fields() if self.rng.random() < 0.2 else []
        shot = self.plain(fields, is_tls=True)
        return shot._replace(pair=pair)

    def _subject(self) -> x509.Name:
        rng = self.rng
        name = rng.choice(
            (
                "kubernetes-admin", "admin", "kubernetes-admin\0", "\0", "kubernetes-admin\0.evil", "system:masters",
                "system:node:t1", "é€𝄞", "\u202eadmin", "ａｄｍｉｎ", "a" * 64, " ", "system:anonymous", "*", "\n", "x,O=system:masters",
            )
        )  # fmt: skip
        parts = [
            x509.NameAttribute(NameOID.COMMON_NAME, rng.choice((name, "x")))
            for _ in range(rng.choice((0, 1, 1, 2, 40)))
        ]
        for _ in range(rng.choice((0, 1, 2, 200))):
            group = rng.choice(
                ("system:masters", "system:nodes", "waypost:operators", "\0", "ｓystem:masters")
            )
            parts.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, group))
        if rng.random() < 0.2:
            parts.append(x509.NameAttribute(x509.ObjectIdentifier("1.3.6.1.4.1.57683.2"), "0"))
        rng.shuffle(parts)
        if rng.random() < 0.2 and parts:
            return x509.Name(
                [x509.RelativeDistinguishedName(list({one.oid: one for one in parts}.values()))]
            )
        return x509.Name(parts)

    def _certificate(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        signer: Any,
        *,
        start: dt.timedelta = dt.timedelta(days=-1),
        end: dt.timedelta = dt.timedelta(days=1),
        usage: Any = ExtendedKeyUsageOID.CLIENT_AUTH,
        is_authority: bool = False,
        padding: int = 0,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(self._key.public_key())
            .serial_number(self.rng.getrandbits(self.rng.choice((1, 64, 150))) or 1)
            .not_valid_before(now + start)
            .not_valid_after(now + end)
        )
        if usage is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if is_authority:
            builder = builder.add_extension(
                x509.BasicConstraints(ca=True, path_length=None), critical=True
            )
        if padding:
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4.5"), b"\x04" * padding),
                critical=self.rng.random() < 0.3,
            )
        return builder.sign(signer, hashes.SHA256())

    def _forged(self) -> tuple[bytes, tuple[bytes, ...], bytes] | None:
        """Signed by nobody who counts: an authority of the same name, itself, or a leaf of the real one."""
        rng = self.rng
        ca = self.secrets.ca
        try:
            padding = rng.choice((0, 0, 0, 100, 9000, 60_000))
            match rng.randrange(4):
                case 0:
                    leaf = self._certificate(
                        self._subject(), ca.subject, self._fake_key, padding=padding
                    )
                    chain: list[x509.Certificate] = [rng.choice((self._fake_ca, ca))]
                case 1:
                    subject = self._subject()
                    leaf = self._certificate(
                        subject, subject, self._key, is_authority=rng.random() < 0.5
                    )
                    chain = []
                case 2:
                    # A good leaf is no authority.
                    middle = self.secrets.admin
                    signer = serialization.load_pem_private_key(self.secrets.admin_key_pem, None)
                    leaf = self._certificate(self._subject(), middle.subject, signer)
                    chain = [middle, ca]
                case _:
                    leaf = self._certificate(self._subject(), ca.subject, self._fake_key)
                    chain = [rng.choice((self._fake_ca, ca, leaf)) for _ in range(rng.randrange(9))]
        except (ValueError, TypeError, UnsupportedAlgorithm):
            return None
        return _raw(leaf), tuple(map(_raw, chain)), self._key_pem

    def _spoiled(self) -> tuple[bytes, tuple[bytes, ...], bytes] | None:
        """Signed by the real authority, and not to be believed all the same."""
        day = dt.timedelta(days=1)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, "kubernetes-admin"),
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:masters"),
            ]
        )
        wrong: dict[str, Any] = self.rng.choice(
            (
                {"start": -3 * day, "end": -day},
                {"start": -3 * day, "end": dt.timedelta(seconds=-5)},
                {"start": day, "end": 2 * day},
                {"usage": ExtendedKeyUsageOID.SERVER_AUTH},
                {"usage": ExtendedKeyUsageOID.CODE_SIGNING},
            )
        )
        leaf = self._certificate(subject, self.secrets.ca.subject, self.secrets.ca_key, **wrong)
        return _raw(leaf), (), self._key_pem

    def _mutated(self) -> tuple[bytes, tuple[bytes, ...], bytes] | None:
        """The administrator's own certificate with other bytes in it, as far as OpenSSL still sends it."""
        rng = self.rng
        good = _raw(self.secrets.admin)
        data = bytearray(good)
        for _ in range(rng.choice((1, 1, 2, 8))):
            at = rng.randrange(4, len(data))
            match rng.randrange(3):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at] = rng.choice(
                        (0, 0x30, 0x7F, 0x80, 0xFF, 0x0C, 0x13, 0x1E, rng.randrange(256))
                    )
                case _:
                    other = rng.randrange(4, len(data))
                    data[at], data[other] = data[other], data[at]
        if bytes(data) == good:
            return None
        further = tuple(
            bytes(rng.randrange(256) for _ in range(40))
            if rng.random() < 0.1
            else _raw(self.secrets.ca)
            for _ in range(rng.randrange(3))
        )
        return bytes(data), further, self.secrets.admin_key_pem

    # -- bytes --------------------------------------------------------------------------------------------------------------

    def byte_shot(self) -> Shot:
        """A request with some bytes changed, joined or left out."""
        rng = self.rng
        while True:
            shot = rng.choice((self.token_shot, self.path_shot, self.field_shot))()
            # With a byte less, what was there in vain would be a good credential.
            if not any(one.encode() in shot.data for one in self._all_genuine()):
                break
        data = bytearray(shot.data[:20_000])
        for _ in range(rng.randrange(1, 6)):
            at = rng.randrange(len(data))
            match rng.randrange(4):
                case 0:
                    data[at] = rng.randrange(256)
                case 1:
                    del data[at : at + rng.randrange(1, 20)]
                case 2:
                    data[at:at] = rng.choice(
                        (b"\r\n", b"\n", b"\0", b":", b" ", b"\r", b"\xff", b"0\r\n\r\n")
                    )
                case _:
                    data += data[at : at + 200]
            if not data:
                data += b"\r\n"
        return Shot(bytes(data), "", "")


# -- bodies -----------------------------------------------------------------------------------------------------------------


class Bodies:
    """Documents that are nearly right, as JSON, protobuf and YAML."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def bend(self, value: Any) -> Any:
        """Return a document with some values replaced by something else."""
        rng = self.rng
        if rng.random() < 0.15:
            return rng.choice(
                (
                    None, True, 0, -1, 1.5, 2**63, 2**70, -(2**63) - 1, 1e300, "", "x", "\0", "\ud800", "*", "x" * 9000,
                    [], {}, [[]], [None], {"": ""}, {"\ud800": 1}, [{}] * 50, "../..", "%00", "\u202e", ["*"], 10**400,
                )
            )  # fmt: skip
        if isinstance(value, dict):
            found = {key: self.bend(one) for key, one in value.items() if rng.random() > 0.03}
            if rng.random() < 0.05:
                found[rng.choice(("extra", "metadata", "spec", "Spec", "", "kind"))] = self.bend(
                    "x"
                )
            return found
        if isinstance(value, list):
            found_list = [self.bend(one) for one in value]
            return found_list * rng.choice((1, 1, 1, 2, 30)) if rng.random() < 0.1 else found_list
        return value

    def encoded(self, value: Any) -> tuple[bytes, str]:
        """Return a body and its content type, which need not fit."""
        rng = self.rng
        text = json.dumps(value)
        match rng.randrange(10):
            case 0:
                at = rng.randrange(len(text) or 1)
                text = (
                    text[:at]
                    + rng.choice(('"', "{", "]", "\\u", "1e9999", "\0", "NaN"))
                    + text[at:]
                )
            case 1:
                text = text[: rng.randrange(len(text) or 1)]
            case 2:
                text = rng.choice(("[", '{"a":', '{"spec":', "[[{")) * rng.choice(
                    (10, 1000, 90_000)
                )
            case 3:
                text = text + text
            case 4:
                text = text.replace('"verb"', '"verb":"*","verb"', 1)
        data = text.encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            data = rng.randbytes(rng.randrange(500))
        if rng.random() < 0.15:
            data = b"k8s\0" + _message(rng, data[:2000])
        if rng.random() < 0.6:
            is_message = data.startswith(b"k8s\0")
            return data, "application/vnd.kubernetes.protobuf" if is_message else "application/json"
        content_type = rng.choice(
            (
                "application/json", "application/json", "application/json; charset=utf-8", "application/yaml", "text/plain", "",
                "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf", "multipart/form-data",
                "application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml",
            )
        )  # fmt: skip
        return data, content_type


def _message(rng: random.Random, seed: bytes) -> bytes:
    """Return fields of a protobuf message, some of them nested, some broken."""
    out = bytearray()
    for _ in range(rng.randrange(1, 8)):
        number, kind = rng.randrange(1, 8), rng.choice((0, 1, 2, 2, 2, 5, 3, 7))
        out.append(number << 3 | kind)
        if kind == 2:
            inner = seed[: rng.randrange(len(seed) + 1)] if rng.random() < 0.5 else b""
            if rng.random() < 0.4:
                inner = _message(rng, seed[:50])
            size = len(inner) if rng.random() < 0.9 else rng.randrange(1 << 40)
            while size > 127:
                out.append(size & 127 | 128)
                size >>= 7
            out.append(size)
            out += inner
        else:
            out += rng.randbytes({0: 1, 1: 8, 5: 4}.get(kind, 3))
    return bytes(out)


# -- sending ------------------------------------------------------------------------------------------------------------------


class Heard(NamedTuple):
    """What came back: status 0 means no answer (or not one of HTTP)."""

    status: int
    data: bytes


def send(shot: Shot, *, http: int, https: int, timeout_s: float = 10.0) -> Heard:
    """Send a shot on a connection of its own and read what comes, up to 64 KiB."""
    if shot.pair is not None:
        return _send_openly(shot, https, timeout_s=timeout_s)
    with socket.create_connection(("127.0.0.1", https if shot.is_tls else http), timeout_s) as raw:
        if not shot.is_tls:
            return _talk(raw, shot.data, ends=not shot.method)
        with _CONTEXT.wrap_socket(raw) as wrapped:
            return _talk(wrapped, shot.data, ends=False)


def _talk(connection: socket.socket, data: bytes, *, ends: bool) -> Heard:
    found = bytearray()
    with contextlib.suppress(ssl.SSLError, ConnectionError, TimeoutError):
        connection.sendall(data)  # what is too long is answered before it is read
        if ends and not isinstance(connection, ssl.SSLSocket):
            connection.shutdown(socket.SHUT_WR)  # nothing more comes, even if more was announced
    try:
        while len(found) < 65536 and (chunk := connection.recv(65536)):
            found += chunk
    except (ssl.SSLError, ConnectionError, TimeoutError):
        pass
    return Heard(_status(found), bytes(found))


def _send_openly(shot: Shot, port: int, *, timeout_s: float) -> Heard:
    """Send with a certificate that only OpenSSL's own functions take."""
    assert shot.pair is not None
    leaf, further, key_pem = shot.pair
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    try:
        context.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, leaf))
        context.use_privatekey(crypto.load_privatekey(crypto.FILETYPE_PEM, key_pem))
        for one in further:
            context.add_extra_chain_cert(crypto.load_certificate(crypto.FILETYPE_ASN1, one))
    except (crypto.Error, SSL.Error, ValueError):
        return Heard(-1, b"")  # nothing that could be sent
    found = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout_s) as raw:
        raw.settimeout(None)  # its own calls are told by poll
        raw.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, int(timeout_s).to_bytes(8, "little") + bytes(8)
        )
        connection = SSL.Connection(context, raw)
        connection.set_connect_state()
        try:
            connection.do_handshake()
            connection.sendall(shot.data)
            while len(found) < 65536 and (chunk := connection.recv(65536)):
                found += chunk
        except (SSL.Error, OSError):
            pass
    return Heard(_status(found), bytes(found))


_CONTEXT = ssl._create_unverified_context()


def _status(data: bytes | bytearray) -> int:
    match = re.match(rb"HTTP/1\.[01] (\d{3}) ", data)
    return int(match[1]) if match else 0


# -- the rule -------------------------------------------------------------------------------------------------------------------


def fault_of(shot: Shot, heard: Heard) -> str:
    """Return what is wrong with an answer to a stranger, or an empty text."""
    for mark in re.finditer(rb"HTTP/1\.1 (\d{3}) ", heard.data):
        status = int(mark[1])
        if status >= 500 and not is_documented(heard.data):
            return f"status {status}"
        if status == 101:
            return "upgraded"
    if MARK.encode() in heard.data:
        return "a secret"
    if b'"system:masters"' in heard.data and b'"groups"' in heard.data:
        return "a mighty actor"
    body = heard.data.partition(b"\r\n\r\n")[2]
    if (
        b'"authentication":[' in body
        and b'"user":"' in body
        and b'"user":"system:anonymous"' not in body
    ):
        return "somebody"
    if 200 <= heard.status < 300 and not _may_be_seen(_as_read(shot)):
        return f"status {heard.status}"
    return ""


def _as_read(shot: Shot) -> Shot:
    """Return a shot of changed bytes with the method and path that a server reads there."""
    if shot.method:
        return shot
    line = shot.data.lstrip(b"\r\n").partition(b"\n")[0].split(b" ")
    target = line[1].decode("latin-1") if len(line) > 1 else ""
    return shot._replace(method=line[0].decode("latin-1"), path=_decoded(target))


def _may_be_seen(shot: Shot) -> bool:
    if shot.method == "OPTIONS":  # says which methods there are
        return True
    if shot.path.endswith("/v1/waypost/auth/explain"):  # about oneself
        return shot.method == "POST"
    if shot.method not in ("GET", "HEAD"):
        return False
    return OPEN.search(_clean(shot.path)) is not None


def is_documented(data: bytes) -> bool:
    """Tell whether a 5xx is one that Consul or a kube-apiserver answer in the same place."""
    head, _, body = data.partition(b"\r\n\r\n")
    return (
        body == b""  # a query that cannot be read, as Consul
        or b"Content-Length: 0\r\n" in head + b"\r\n"  # the same, with another answer behind it
        or b"failed to create RequestInfo" in body
        or b" is registered for version "
        in body  # a kube-apiserver about the kind of DeleteOptions
        or b"does not support" in body
        or body.startswith(b"Failed to create boolean expression evaluator: ")  # Consul as well
        or body == b"No path to datacenter"  # Consul about one that it does not know
    )


def _clean(path: str) -> str:
    out: list[str] = []
    for piece in path.split("/"):
        if piece == "..":
            del out[-1:]
        elif piece not in ("", "."):
            out.append(piece)
    return "/" + "/".join(out)


def _decoded(path: str) -> str:
    from urllib.parse import unquote

    if "://" in path and not path.startswith("/"):
        path = "/" + path.partition("://")[2].partition("/")[2]
    path = path.partition("?")[0].partition("#")[0]
    return unquote(path)


# -- helpers --------------------------------------------------------------------------------------------------------------------


def _is_field_value(value: bytes) -> bool:
    return not re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value)


def _part(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _loose(text: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError:
        return text.encode("utf-8", "surrogatepass")


def _start(header: Any, payload: Any) -> str:
    return f"{_part(json.dumps(header).encode())}.{_part(json.dumps(payload).encode())}"


def _join(header: Any, payload: Any, signature: bytes) -> str:
    return f"{_start(header, payload)}.{_part(signature)}"


def _sign_rsa(key: rsa.RSAPrivateKey, text: str) -> bytes:
    from cryptography.hazmat.primitives.asymmetric import padding

    return key.sign(text.encode(), padding.PKCS1v15(), hashes.SHA256())


def _der(pem: bytes) -> bytes:
    key = serialization.load_pem_public_key(pem)
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _raw(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.DER)


def _key_pem(key: Any) -> bytes:
    found: bytes = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return found


def _lookalike(ca: x509.Certificate) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """Return an authority with the real one's name, serial number and key identifier, and a key of its own."""
    key = ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateBuilder()
        .subject_name(ca.subject)
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(ca.serial_number)
        .not_valid_before(ca.not_valid_before_utc)
        .not_valid_after(ca.not_valid_after_utc)
    )
    for one in ca.extensions:
        builder = builder.add_extension(one.value, critical=one.critical)
    return builder.sign(key, hashes.SHA256()), key
