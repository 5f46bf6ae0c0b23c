"""Keys and certificates of a member: who may be believed, and what this machine shows of itself.

    cluster/ca.crt, ca.key               the cluster's authority: serving certificates, certificates of nodes
    cluster/store-ca.crt, store-ca.key   the store's authority; only servers have it, so no user's or node's certificate opens etcd
    cluster/serving.crt, .key            what the cluster port shows; self-signed until there is an authority
    cluster/store.crt, .key              a server's certificate for etcd, and to be known as a server on the cluster port
    cluster/node.crt, .key               a client agent's certificate: system:node:NAME in system:nodes

The serving key is made once and stays: its hash is the *fingerprint* by which machines without an authority know each
other again. Renewal replaces certificates, never that key.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

from waypost.access.pki.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    FileWrite,
    ensure_directory,
    read,
    remove_all,
    tighten,
    write_all,
)
from waypost.access.pki.issue import (
    Authority,
    Names,
    Subject,
    Usage,
    belongs,
    ca_pin,
    certificate_pem,
    issue,
    load_authority,
    load_certificate,
    make_authority,
    names_of,
)
from waypost.access.pki.keys import PrivateKey, generate_key, load_private_key, private_pem
from waypost.access.pki.setup import is_issued_by, needs_renewal
from waypost.access.pki.verify import ClientVerifier, Untrusted
from waypost.base.clock import Clock
from waypost.base.errors import Malformed, NotFound, Unauthenticated
from waypost.cluster import access_files
from waypost.cluster.messages import Secrets
from waypost.cluster.settings import ClusterSettings
from waypost.store.etcd.tls import EtcdTls

log = logging.getLogger(__name__)

STORE_NAME: Final = "server"
"""CN of the store's certificates; etcd's `--peer-cert-allowed-cn`."""
NODES: Final = "system:nodes"
NODE_PREFIX: Final = "system:node:"
_AUTHORITY_NAME: Final = "waypost-cluster"
_STORE_AUTHORITY_NAME: Final = "waypost-store"


class ServerCaller(msgspec.Struct, frozen=True):
    """A server of this cluster, by a certificate of the store's authority."""

    id: str


class NodeCaller(msgspec.Struct, frozen=True):
    """A client agent of this cluster, by a certificate of the cluster's authority."""

    node: str


class Stranger(msgspec.Struct, frozen=True):
    """Anybody else; `fingerprint` is that of the key it proved to have, empty without a certificate."""

    fingerprint: str = ""


Caller = ServerCaller | NodeCaller | Stranger


class ServingFiles(msgspec.Struct, frozen=True):
    """What the cluster port shows; the same paths for ever, their content is replaced."""

    certificate_file: Path
    key_file: Path


def server_name(datacenter: str) -> str:
    """Return the name that every server's serving certificate has: who talks to servers checks it, not the address."""
    return f"server.{datacenter.replace('_', '-')}.cluster.internal"


def store_server_name(datacenter: str) -> str:
    """Return the name in the certificates of the store."""
    return f"server.{datacenter.replace('_', '-')}.store.internal"


def fingerprint_of(certificate_der: bytes) -> str:
    """Return the fingerprint of a certificate's key. Raises Malformed."""
    try:
        return ca_pin(x509.load_der_x509_certificate(certificate_der))
    except ValueError as exc:
        raise Malformed("a certificate that cannot be read") from exc


def mac(key: bytes, parts: Sequence[bytes]) -> str:
    """Return the HMAC-SHA256 of `parts`, each with its length in front, as hexadecimal digits."""
    digest = hmac.new(key, digestmod=hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def check_mac(key: bytes, parts: Sequence[bytes], shown: str, *, who: str) -> None:
    """Raise Unauthenticated unless `shown` is the MAC of `parts`."""
    if not shown:
        raise Unauthenticated(
            f"{who} did not use a key; this machine was started with -encrypt, and the others have to be as well"
        )
    if not hmac.compare_digest(mac(key, parts).encode(), shown.encode("utf-8", "replace")):
        raise Unauthenticated(f"{who} has another key for -encrypt")


class Trust:
    """The keys and certificates of one machine. Methods that write raise Unavailable and leave what was there."""

    def __init__(self, settings: ClusterSettings, *, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._folder = settings.directory
        self.authority: Authority | None = None
        self.store_authority: Authority | None = None
        self.fingerprint = ""
        self._nodes: ClientVerifier | None = None
        self._servers: ClientVerifier | None = None

    # -- files

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _certificate(self, name: str) -> x509.Certificate | None:
        path = self._path(f"{name}.crt")
        pem = read(path)
        return None if pem is None else load_certificate(pem, name=str(path))

    def _key(self, name: str) -> PrivateKey | None:
        path = self._path(f"{name}.key")
        pem = read(path)
        return None if pem is None else load_private_key(pem, name=str(path))

    def open(self) -> None:
        """Read what is there; make the serving key. Raises Malformed with the path, Unavailable."""
        ensure_directory(self._folder)
        for name in ("ca", "store-ca", "serving", "store", "node"):
            if tighten(self._path(f"{name}.key")):
                log.warning(
                    "%s could be read by others; its mode is 0600 now", self._path(f"{name}.key")
                )
        if self._key("serving") is None:
            self._self_sign(generate_key())
        elif self._certificate("serving") is None:
            key = self._key("serving")
            assert key is not None
            self._self_sign(key)
        self.load()

    def _self_sign(self, key: PrivateKey) -> None:
        made = make_authority(key, common_name="waypost", now_s=self._clock.wall())
        self._write_pair("serving", made.certificate, key)

    def forget(self) -> None:
        """Be a stranger again, to every cluster. Raises Unavailable."""
        remove_all(
            self._path(f"{name}.{ending}")
            for name in ("store", "node", "ca", "store-ca")
            for ending in ("crt", "key")
        )
        self._self_sign(generate_key())
        self.load()

    def load(self) -> None:
        """Read the authorities again after they were written."""
        self.authority = self._load_authority("ca")
        self.store_authority = self._load_authority("store-ca")
        self._nodes = ClientVerifier([self.authority.certificate]) if self.authority else None
        self._servers = (
            ClientVerifier([self.store_authority.certificate]) if self.store_authority else None
        )
        serving = self._certificate("serving")
        assert serving is not None
        self.fingerprint = ca_pin(serving)

    def _load_authority(self, name: str) -> Authority | None:
        path, key_path = self._path(f"{name}.crt"), self._path(f"{name}.key")
        pem = read(path)
        if pem is None:
            return None
        return load_authority(pem, read(key_path), name=str(path), key_name=str(key_path))

    def _write_pair(self, name: str, certificate: x509.Certificate, key: PrivateKey) -> None:
        write_all(
            [
                FileWrite(self._path(f"{name}.key"), private_pem(key), SECRET_MODE),
                FileWrite(
                    self._path(f"{name}.crt"),
                    certificate_pem(certificate),
                    PUBLIC_MODE,
                ),
            ]
        )

    @property
    def serving(self) -> ServingFiles:
        """What the cluster port shows."""
        return ServingFiles(self._path("serving.crt"), self._path("serving.key"))

    @property
    def store_tls(self) -> EtcdTls | None:
        """How this server is known to the store, None before it has a certificate."""
        if not self._path("store.crt").exists():
            return None
        return EtcdTls(
            ca_file=self._path("store-ca.crt"),
            certificate_file=self._path("store.crt"),
            key_file=self._path("store.key"),
        )

    @property
    def is_credible(self) -> bool:
        """Whether this machine can prove to be of the cluster."""
        if self.authority is None:
            return False
        name = "store" if self._settings.is_server else "node"
        return self._path(f"{name}.crt").exists() and self._path(f"{name}.key").exists()

    @property
    def pin(self) -> str:
        """The pin of the cluster's authority, empty before there is one."""
        return self.authority.pin if self.authority else ""

    def authority_pem(self) -> bytes:
        """Return the certificate of the cluster's authority. Raises NotFound before there is one."""
        if self.authority is None:
            raise NotFound("this machine belongs to no cluster yet")
        return self.authority.pem

    @property
    def own_authority(self) -> str:
        """The pin of the authority that this machine would bring into a cluster (`waypost init`), if it has one."""
        adopted = self._adopted()
        return adopted.pin if adopted else ""

    def _adopted(self) -> Authority | None:
        folder = self._settings.data_dir / "pki"
        pem, key = read(folder / "ca.crt"), read(folder / "ca.key")
        if pem is None or key is None:
            return None
        return load_authority(
            pem, key, name=str(folder / "ca.crt"), key_name=str(folder / "ca.key")
        )

    # -- authorities

    def propose(self) -> Secrets:
        """Return the authorities of a cluster that this server would found; nothing is written."""
        now_s = self._clock.wall()
        cluster = self._adopted() or make_authority(
            generate_key(), common_name=_AUTHORITY_NAME, now_s=now_s
        )
        store = make_authority(generate_key(), common_name=_STORE_AUTHORITY_NAME, now_s=now_s)
        assert cluster.key is not None
        assert store.key is not None
        return Secrets(
            authority_pem=cluster.pem,
            authority_key=private_pem(cluster.key),
            store_authority_pem=store.pem,
            store_authority_key=private_pem(store.key),
            pki=self._pki(),
        )

    def secrets(self) -> Secrets:
        """Return what makes another machine a server. Raises Malformed on a machine that is none."""
        if self.authority is None or self.authority.key is None or self.store_authority is None:
            raise Malformed("this machine does not have the cluster's authorities")
        assert self.store_authority.key is not None
        return Secrets(
            authority_pem=self.authority.pem,
            authority_key=private_pem(self.authority.key),
            store_authority_pem=self.store_authority.pem,
            store_authority_key=private_pem(self.store_authority.key),
            pki=self._pki(),
        )

    def _pki(self) -> dict[str, bytes]:
        found = access_files.read_files(self._settings.data_dir / "pki")
        return found if {"ca.key", "sa.key"} <= found.keys() else {}

    def found(self, secrets: Secrets, *, now_s: float) -> None:
        """Become a server of the cluster that these authorities belong to: write them, and certificates of them.

        Raises Malformed for authorities that do not fit together, Unavailable when writing fails.
        """
        cluster = load_authority(
            secrets.authority_pem, secrets.authority_key, name="the cluster's authority"
        )
        store = load_authority(
            secrets.store_authority_pem, secrets.store_authority_key, name="the store's authority"
        )
        writes = [
            FileWrite(self._path("ca.key"), secrets.authority_key, SECRET_MODE),
            FileWrite(self._path("ca.crt"), secrets.authority_pem, PUBLIC_MODE),
            FileWrite(self._path("store-ca.key"), secrets.store_authority_key, SECRET_MODE),
            FileWrite(self._path("store-ca.crt"), secrets.store_authority_pem, PUBLIC_MODE),
        ]
        pki = self._settings.data_dir / "pki"
        if secrets.pki and not (pki / "ca.crt").exists():
            ensure_directory(pki)
            present = access_files.read_files(pki)
            writes += access_files.lacking(secrets.pki, present, folder=pki)
        write_all(writes)
        self.authority, self.store_authority = cluster, store
        self._issue_store(now_s=now_s)
        self._issue_serving(now_s=now_s)
        self.load()

    def _server_names(self, name: str) -> Names:
        texts = [self._settings.address, "127.0.0.1", "localhost", name]
        return Names.of(dict.fromkeys(texts))

    def _issue_serving(self, *, now_s: float) -> None:
        assert self.authority is not None
        key = self._key("serving")
        assert key is not None
        certificate = issue(
            self.authority,
            key.public_key(),
            subject=Subject(self._settings.node_id, ("waypost:servers",)).to_x509(),
            usages=(Usage.SERVER, Usage.CLIENT),
            names=self._server_names(server_name(self._settings.datacenter)),
            now_s=now_s,
        )
        self._write_pair("serving", certificate, key)

    def _issue_store(self, *, now_s: float) -> None:
        assert self.store_authority is not None
        key = generate_key()
        certificate = issue(
            self.store_authority,
            key.public_key(),
            # The id in O tells the servers apart on the cluster port; etcd looks at CN only.
            subject=Subject(STORE_NAME, (self._settings.node_id,)).to_x509(),
            usages=(Usage.SERVER, Usage.CLIENT),
            names=self._server_names(store_server_name(self._settings.datacenter)),
            now_s=now_s,
        )
        self._write_pair("store", certificate, key)

    def refresh(self, *, now_s: float) -> bool:
        """Renew a server's own certificates that need it, or name another address; return whether any did."""
        if self.authority is None or self.authority.key is None or self.store_authority is None:
            return False
        is_changed = False
        for name, wanted, make in (
            ("serving", server_name(self._settings.datacenter), self._issue_serving),
            ("store", store_server_name(self._settings.datacenter), self._issue_store),
        ):
            found = self._certificate(name)
            authority = self.authority if name == "serving" else self.store_authority
            if (
                found is None
                or needs_renewal(found, now_s=now_s)
                or not is_issued_by(found, authority)
                or self._server_names(wanted).missing_in(names_of(found))
            ):
                make(now_s=now_s)
                log.info("the certificate %s was renewed", self._path(f"{name}.crt"))
                is_changed = True
        if is_changed:
            self.load()
        return is_changed

    # -- nodes

    def request(self) -> bytes:
        """Return a client's request for its certificate; the key is made, and stays here."""
        key = self._key("node")
        if key is None:
            key = generate_key()
            write_all([FileWrite(self._path("node.key"), private_pem(key), SECRET_MODE)])
        csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(Subject(NODE_PREFIX + self._settings.node, (NODES,)).to_x509())
            .sign(key, hashes.SHA256())
        )
        return csr.public_bytes(serialization.Encoding.PEM)

    def accept(self, *, authority_pem: bytes, certificate_pem_: bytes) -> None:
        """Keep the certificate that the cluster gave this client. Raises Malformed when it is not what was asked for."""
        authority = Authority(load_certificate(authority_pem, name="the cluster's authority"))
        certificate = load_certificate(certificate_pem_, name="the certificate of this node")
        key = self._key("node")
        if key is None or not belongs(certificate, key) or not is_issued_by(certificate, authority):
            raise Malformed("the cluster's answer is not a certificate for this node's key")
        write_all(
            [
                FileWrite(self._path("ca.crt"), authority_pem, PUBLIC_MODE),
                FileWrite(
                    self._path("node.crt"),
                    certificate_pem(certificate),
                    PUBLIC_MODE,
                ),
            ]
        )
        self.load()

    def node_needs_renewal(self, *, now_s: float) -> bool:
        """Tell whether two thirds of the life of the client's certificate are over."""
        found = self._certificate("node")
        return found is not None and needs_renewal(found, now_s=now_s)

    def node_is_usable(self, *, now_s: float) -> bool:
        """Tell whether the client's certificate is for this node's name, of the authority, and valid."""
        found = self._certificate("node")
        if found is None or self.authority is None or self._key("node") is None:
            return False
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return (
            [one.value for one in names] == [NODE_PREFIX + self._settings.node]
            and is_issued_by(found, self.authority)
            and now_s < found.not_valid_after_utc.timestamp()
        )

    def sign_node(self, csr_pem: bytes, *, node: str, now_s: float) -> bytes:
        """Return the certificate of node `node` for the key of a request. Raises Malformed for a bad request.

        Only the key is taken from the request: the name is what the caller may be.
        """
        if self.authority is None:
            raise Malformed("this machine has no authority")
        try:
            csr = x509.load_pem_x509_csr(csr_pem)
            is_valid = csr.is_signature_valid
            public = csr.public_key()
        except (ValueError, TypeError) as exc:
            raise Malformed("the certificate request cannot be read") from exc
        if not is_valid:
            raise Malformed("the certificate request is not signed with its own key")
        certificate = issue(
            self.authority,
            public,  # type: ignore[arg-type]
            subject=Subject(NODE_PREFIX + node, (NODES,)).to_x509(),
            usages=(Usage.CLIENT,),
            now_s=now_s,
        )
        return certificate_pem(certificate)

    # -- judging others

    def identify(self, chain_der: Sequence[bytes]) -> Caller:
        """Return who a caller of the cluster port is by its certificates; TLS has proved that it has the key."""
        if not chain_der:
            return Stranger()
        now_s = self._clock.wall()
        if self._servers is not None:
            found = self._servers.verify(chain_der, now_s=now_s)
            if not isinstance(found, Untrusted):
                ids = _values(found.certificate, NameOID.ORGANIZATION_NAME)
                if len(ids) == 1 and _values(found.certificate, NameOID.COMMON_NAME) == [
                    STORE_NAME
                ]:
                    return ServerCaller(ids[0])
        if self._nodes is not None:
            found = self._nodes.verify(chain_der, now_s=now_s)
            if not isinstance(found, Untrusted):
                names = _values(found.certificate, NameOID.COMMON_NAME)
                groups = _values(found.certificate, NameOID.ORGANIZATION_NAME)
                if len(names) == 1 and names[0].startswith(NODE_PREFIX) and NODES in groups:
                    return NodeCaller(names[0].removeprefix(NODE_PREFIX))
        try:
            return Stranger(fingerprint_of(chain_der[0]))
        except Malformed:
            return Stranger()

    def check_server(self, certificate_der: bytes, authority_pem: bytes) -> str:
        """Check that a server shows a certificate of `authority_pem` with the servers' name; return the pin.

        For a machine that has no authority yet. Raises Unauthenticated.
        """
        authority = Authority(load_certificate(authority_pem, name="the cluster's authority"))
        certificate = x509.load_der_x509_certificate(certificate_der)
        now = dt.datetime.fromtimestamp(self._clock.wall(), dt.UTC)
        if (
            not is_issued_by(certificate, authority)
            or server_name(self._settings.datacenter) not in names_of(certificate).dns
            or not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc
        ):
            raise Unauthenticated(
                "the server's certificate is not one of the authority that it names"
            )
        return authority.pin

    # -- contexts

    def first_contact(self) -> ssl.SSLContext:
        """Return the TLS context for machines that cannot be verified yet; the caller looks at the fingerprint."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        serving = self.serving
        context.load_cert_chain(serving.certificate_file, serving.key_file)
        return context

    def members_only(self) -> ssl.SSLContext:
        """Return the TLS context for servers of the cluster. Raises Malformed on a machine that has no certificate."""
        if not self.is_credible or self.authority is None:
            raise Malformed("this machine has no certificate of the cluster")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_verify_locations(cadata=self.authority.pem.decode("ascii"))
        name = "store" if self._settings.is_server else "node"
        context.load_cert_chain(self._path(f"{name}.crt"), self._path(f"{name}.key"))
        return context


def _values(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str]:
    return [str(one.value) for one in certificate.subject.get_attributes_for_oid(oid)]
