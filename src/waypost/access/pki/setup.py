"""The access files of a data directory: what `waypost init` makes, `certs check` looks at and `certs renew` replaces.

    pki/ca.crt, ca.key             the certificate authority                                10 years
    pki/apiserver.crt, .key        the serving certificate                                  1 year
    pki/sa.key, sa.pub             what service-account tokens are signed and verified with  no end
    admin.conf                     kubernetes-admin in system:masters: break-glass           1 year
    operator.conf                  waypost-operator in waypost:operators: for every day      1 year
    node.conf                      system:node:NODE in system:nodes: this machine's agent    1 year

Names, subjects and modes are kubeadm's where kubeadm has the file. First everything is looked at, then everything is
written; whatever is there and good stays, and nothing that somebody else's authority signed is ever replaced.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from waypost.access.authn.jws import load_keys
from waypost.access.pki.files import (
    PUBLIC_MODE,
    SECRET_MODE,
    FileWrite,
    ensure_directory,
    locked,
    read,
    tighten,
    write_all,
)
from waypost.access.pki.issue import (
    BACKDATE_S,
    LEAF_VALIDITY_S,
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
    usages_of,
)
from waypost.access.pki.keys import (
    DEFAULT_ALGORITHM,
    algorithm_of,
    generate_key,
    load_private_key,
    private_pem,
    public_pem,
    spki_der,
)
from waypost.base.errors import Conflict, Malformed, NotFound
from waypost.base.later import later
from waypost.wire import kubeconfig

if TYPE_CHECKING:
    from cryptography import exceptions, x509
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
else:
    exceptions = later("cryptography.exceptions")
    x509 = later("cryptography.x509")
    ec = later("cryptography.hazmat.primitives.asymmetric.ec")
    rsa = later("cryptography.hazmat.primitives.asymmetric.rsa")

CA_NAME: Final = "kubernetes"
CLUSTER: Final = "kubernetes"
OPERATORS: Final = "waypost:operators"
"""The everyday group of operators: bound to cluster-admin by a binding, so it can be taken away again."""
RENEW_AT: Final = 2 / 3
"""The share of its life after which a certificate should be renewed."""
PHASES: Final = ("certs", "kubeconfig")


class Layout(msgspec.Struct, frozen=True):
    """Where the files are, below a data directory."""

    data_dir: Path

    @property
    def pki(self) -> Path:
        """The directory of certificates and keys."""
        return self.data_dir / "pki"

    def certificate(self, name: str) -> Path:
        """The certificate `name`."""
        return self.pki / f"{name}.crt"

    def key(self, name: str) -> Path:
        """The key `name`."""
        return self.pki / f"{name}.key"

    @property
    def token_public_keys(self) -> Path:
        """What verifies service-account tokens; may hold more than one key."""
        return self.pki / "sa.pub"

    def kubeconfig(self, name: str) -> Path:
        """The kubeconfig `name`, such as `admin.conf`."""
        return self.data_dir / name


class InitSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What `waypost init` is told."""

    node: str
    """This machine's name as a node."""
    server: str
    """The URL for the kubeconfig files, such as `https://192.0.2.10:8501`."""
    names: Names
    """What the serving certificate shall be good for."""
    algorithm: str = DEFAULT_ALGORITHM
    validity_s: float = LEAF_VALIDITY_S
    phases: tuple[str, ...] = PHASES


class Action(StrEnum):
    """What was done with a file."""

    CREATED = "created"
    KEPT = "kept"
    REISSUED = "reissued"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that `init` made or found."""

    phase: str
    name: str
    action: Action
    paths: tuple[Path, ...]
    detail: str = ""
    expires_s: float | None = None


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What `init` did, or would do."""

    steps: tuple[Step, ...]
    warnings: tuple[str, ...]
    pin: str
    names: tuple[str, ...]


def client_subjects(node: str) -> dict[str, Subject]:
    """Return the subject of each kubeconfig file's certificate."""
    return {
        "admin.conf": Subject("kubernetes-admin", ("system:masters",)),
        "operator.conf": Subject("waypost-operator", (OPERATORS,)),
        "node.conf": Subject(f"system:node:{node}", ("system:nodes",)),
    }


def initialise(
    settings: InitSettings, layout: Layout, *, now_s: float, dry_run: bool = False
) -> Setup:
    """Make what is missing; return what was done.

    Raises Conflict for files that belong to another authority or do not fit together, Malformed for files that cannot
    be read, Unavailable when writing fails. Then nothing has been changed.
    """
    if not dry_run:
        ensure_directory(layout.pki)
        with locked(layout.pki):
            plan = _Plan(settings, layout, now_s=now_s)
            plan.make()
            loose = [path for path in _secrets(layout) if tighten(path)]
            write_all(plan.writes)
    else:
        plan = _Plan(settings, layout, now_s=now_s)
        plan.make()
        loose = []
    warnings = [
        *plan.warnings,
        *(f"{path} could be read by others; its mode is 0600 now" for path in loose),
    ]
    return Setup(
        steps=tuple(plan.steps),
        warnings=tuple(warnings),
        pin=plan.authority.pin,
        names=plan.names.texts,
    )


def _secrets(layout: Layout) -> list[Path]:
    return [
        layout.key("ca"),
        layout.key("apiserver"),
        layout.key("sa"),
        *(layout.kubeconfig(name) for name in client_subjects("")),
    ]


class _Plan:
    """Looks at what is there and collects what is to be written."""

    def __init__(self, settings: InitSettings, layout: Layout, *, now_s: float) -> None:
        self.settings = settings
        self.layout = layout
        self.now_s = now_s
        self.writes: list[FileWrite] = []
        self.steps: list[Step] = []
        self.warnings: list[str] = []
        self.names = settings.names
        self.authority: Authority

    def make(self) -> None:
        certs = "certs" in self.settings.phases
        self._authority(may_create=certs)
        if certs:
            self._serving()
            self._token_keys()
        if "kubeconfig" in self.settings.phases:
            for name, subject in client_subjects(self.settings.node).items():
                self._kubeconfig(name, subject)

    def _authority(self, *, may_create: bool) -> None:
        certificate_path, key_path = self.layout.certificate("ca"), self.layout.key("ca")
        certificate, key = read(certificate_path), read(key_path)
        paths = (certificate_path, key_path)
        if certificate is not None:
            self.authority = load_authority(
                certificate, key, name=str(certificate_path), key_name=str(key_path)
            )
            expires_s = self.authority.certificate.not_valid_after_utc.timestamp()
            if self.now_s >= expires_s:
                raise Conflict(
                    f"{certificate_path}: the certificate authority has expired; move {self.layout.pki} and the "
                    ".conf files away to start with a new one"
                )
            detail = "" if key is not None else "without its key: nothing can be issued here"
            self._step("certs", "ca", Action.KEPT, paths, detail=detail, expires_s=expires_s)
            return
        if not may_create:
            raise NotFound(
                f"{certificate_path}: there is no certificate authority yet; run the phase certs first"
            )
        stray = [
            path
            for path in (self.layout.certificate("apiserver"), self.layout.kubeconfig("admin.conf"))
            if path.exists()
        ]
        if stray and key is None:
            raise Conflict(
                f"{stray[0]} is there without its authority {certificate_path}; restore that, or move the files away"
            )
        if key is None and self._adopt_cluster(paths):
            return
        if key is not None:
            # Interrupted between the two files, or half a backup: what this key signed stays good.
            private = load_private_key(key, name=str(key_path))
        else:
            private = generate_key(self.settings.algorithm)
            self._write(key_path, private_pem(private), SECRET_MODE)
        self.authority = make_authority(private, common_name=CA_NAME, now_s=self.now_s)
        self._write(certificate_path, self.authority.pem, PUBLIC_MODE)
        self._step(
            "certs",
            "ca",
            Action.CREATED,
            paths,
            detail="for the key that was there" if key is not None else "",
            expires_s=self.authority.certificate.not_valid_after_utc.timestamp(),
        )

    def _adopt_cluster(self, paths: tuple[Path, Path]) -> bool:
        """Take the authority of the cluster that this server is a member of; return whether there is one."""
        folder = self.layout.data_dir / "cluster"
        certificate, key = read(folder / "ca.crt"), read(folder / "ca.key")
        if certificate is None or key is None:
            return False
        name = str(folder / "ca.crt")
        self.authority = load_authority(
            certificate, key, name=name, key_name=str(folder / "ca.key")
        )
        self._write(paths[1], key, SECRET_MODE)
        self._write(paths[0], certificate, PUBLIC_MODE)
        self._step(
            "certs",
            "ca",
            Action.CREATED,
            paths,
            detail=f"the cluster's own, {name}",
            expires_s=self.authority.certificate.not_valid_after_utc.timestamp(),
        )
        return True

    def _serving(self) -> None:
        name = "apiserver"
        certificate_path, key_path = self.layout.certificate(name), self.layout.key(name)
        certificate, key = read(certificate_path), read(key_path)
        paths = (certificate_path, key_path)
        action, detail = Action.CREATED, ""
        if certificate is not None:
            found = load_certificate(certificate, name=str(certificate_path))
            self._refuse_foreign(found, certificate_path)
            if key is None or not belongs(found, load_private_key(key, name=str(key_path))):
                raise Conflict(
                    f'{key_path} is not the key of {certificate_path}; "waypost certs renew {name}" makes a new pair'
                )
            missing = self.settings.names.missing_in(names_of(found))
            expires_s = found.not_valid_after_utc.timestamp()
            self.names = self.settings.names.union(names_of(found))
            if not missing:
                self._warn_expiry(name, expires_s)
                self._step("certs", name, Action.KEPT, paths, expires_s=expires_s)
                return
            action, detail = Action.REISSUED, f"for {', '.join(missing)} as well"
        issued, issued_key = _issue_pair(
            self.authority,
            subject=Subject("kube-apiserver").to_x509(),
            usages=(Usage.SERVER,),
            names=self.names,
            now_s=self.now_s,
            settings=self.settings,
        )
        self._write(key_path, issued_key, SECRET_MODE)
        self._write(certificate_path, certificate_pem(issued), PUBLIC_MODE)
        expires_s = issued.not_valid_after_utc.timestamp()
        self._step("certs", name, action, paths, detail=detail, expires_s=expires_s)

    def _token_keys(self) -> None:
        key_path, public_path = self.layout.key("sa"), self.layout.token_public_keys
        key, public = read(key_path), read(public_path)
        paths = (key_path, public_path)
        if key is None and public is not None:
            raise Conflict(
                f"{public_path} is there without {key_path}; restore the key, or move the file away"
            )
        private = (
            load_private_key(key, name=str(key_path))
            if key is not None
            else generate_key(self.settings.algorithm)
        )
        if key is None:
            self._write(key_path, private_pem(private), SECRET_MODE)
        ours = spki_der(private.public_key())
        if public is None:
            self._write(public_path, public_pem(private.public_key()), SECRET_MODE)
        elif ours not in {spki_der(one) for one in load_keys(public, name=str(public_path))}:
            raise Conflict(
                f"{public_path} does not hold the public key of {key_path}: tokens could not be verified"
            )
        action = Action.CREATED if key is None or public is None else Action.KEPT
        self._step("certs", "sa", action, paths)

    def _kubeconfig(self, name: str, subject: Subject) -> None:
        path = self.layout.kubeconfig(name)
        data = read(path)
        if data is not None:
            found = _client_of(data, path)
            if not _same_authority(found.ca_pem, self.authority):
                raise Conflict(
                    f"{path}: a kubeconfig file is there already and trusts another certificate authority; move it away"
                )
            self._refuse_foreign(found.certificate, path)
            if found.server != self.settings.server:
                self.warnings.append(
                    f"{path} keeps the server {found.server}; {self.settings.server} was asked for"
                )
            expires_s = found.certificate.not_valid_after_utc.timestamp()
            self._warn_expiry(name, expires_s)
            self._step("kubeconfig", name, Action.KEPT, (path,), expires_s=expires_s)
            return
        issued, issued_key = _issue_pair(
            self.authority,
            subject=subject.to_x509(),
            usages=(Usage.CLIENT,),
            names=None,
            now_s=self.now_s,
            settings=self.settings,
        )
        config = kubeconfig.single(
            server=self.settings.server,
            ca_pem=self.authority.pem,
            user_name=subject.common_name,
            user=kubeconfig.user_with_certificate(certificate_pem(issued), issued_key),
            cluster_name=CLUSTER,
        )
        self._write(path, kubeconfig.to_yaml(config).encode(), SECRET_MODE)
        self._step(
            "kubeconfig",
            name,
            Action.CREATED,
            (path,),
            detail=f"{subject.common_name}, {', '.join(subject.organizations)}",
            expires_s=issued.not_valid_after_utc.timestamp(),
        )

    def _refuse_foreign(self, certificate: x509.Certificate, path: Path) -> None:
        if not is_issued_by(certificate, self.authority):
            raise Conflict(
                f"{path}: the certificate is not one of {self.layout.certificate('ca')}; move it away"
            )

    def _warn_expiry(self, name: str, expires_s: float) -> None:
        if expires_s <= self.now_s:
            self.warnings.append(f'{name} has expired; "waypost certs renew {name}" replaces it')

    def _write(self, path: Path, data: bytes, mode: int) -> None:
        self.writes.append(FileWrite(path, data, mode))

    def _step(
        self,
        phase: str,
        name: str,
        action: Action,
        paths: tuple[Path, ...],
        *,
        detail: str = "",
        expires_s: float | None = None,
    ) -> None:
        self.steps.append(
            Step(
                phase=phase,
                name=name,
                action=action,
                paths=paths,
                detail=detail,
                expires_s=expires_s,
            )
        )


def _issue_pair(
    authority: Authority,
    *,
    subject: x509.Name,
    usages: tuple[Usage, ...],
    names: Names | None,
    now_s: float,
    settings: InitSettings,
) -> tuple[x509.Certificate, bytes]:
    key = generate_key(settings.algorithm)
    certificate = issue(
        authority,
        key.public_key(),
        subject=subject,
        usages=usages,
        names=names,
        now_s=now_s,
        validity_s=settings.validity_s,
    )
    return certificate, private_pem(key)


def is_issued_by(certificate: x509.Certificate, authority: Authority) -> bool:
    """Tell whether `authority` signed a certificate."""
    try:
        certificate.verify_directly_issued_by(authority.certificate)
    except (ValueError, TypeError, exceptions.InvalidSignature, exceptions.UnsupportedAlgorithm):
        return False
    return True


class _Client(msgspec.Struct, frozen=True):
    config: kubeconfig.Kubeconfig
    user_name: str
    server: str
    ca_pem: bytes
    certificate: x509.Certificate


def _client_of(data: bytes, path: Path) -> _Client:
    config = kubeconfig.parse(data, name=str(path))
    context, cluster, user = config.context()
    ca = kubeconfig.decoded(
        cluster.certificate_authority_data, what=f"{path}: certificate-authority-data"
    )
    pem = kubeconfig.decoded(user.client_certificate_data, what=f"{path}: client-certificate-data")
    return _Client(config, context.user, cluster.server, ca, load_certificate(pem, name=str(path)))


def _same_authority(ca_pem: bytes, authority: Authority) -> bool:
    try:
        found = x509.load_pem_x509_certificates(ca_pem)
    except ValueError:
        return False
    # A renewed authority keeps its key, which is what counts.
    return any(ca_pin(one) == authority.pin for one in found)


# -- expiry and renewal ------------------------------------------------------------------------------------------------


class Expiry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of `certs check`. `expires_s` is None when the file is missing."""

    name: str
    authority: str
    """The name of the authority that signed it; empty for an authority."""
    expires_s: float | None
    externally_managed: bool = False
    problem: str = ""
    renewal_s: float | None = None
    """When two thirds of its life are over; None for an authority."""

    def is_due(self, *, now_s: float) -> bool:
        """Tell whether it should be issued again."""
        return self.renewal_s is not None and now_s >= self.renewal_s

    def left_s(self, *, now_s: float) -> float:
        """Return how long it is still good, in seconds; not above 0 when it is not."""
        return (self.expires_s or 0.0) - now_s


RENEWABLE: Final = ("admin.conf", "apiserver", "node.conf", "operator.conf")


def expiries(layout: Layout) -> tuple[Expiry, ...]:
    """Return the expiry of every certificate, authorities last. A file that cannot be read is a `problem`."""
    authority_pem = _quiet(layout.certificate("ca"))
    external = layout.certificate("ca").exists() and not layout.key("ca").exists()
    found = []
    for name in RENEWABLE:
        certificate = _quiet(
            layout.kubeconfig(name) if name.endswith(".conf") else layout.certificate(name)
        )
        problem = ""
        if isinstance(certificate, str):
            problem = certificate
        elif _is_foreign(certificate, authority_pem):
            problem = "not signed by the authority ca"
        found.append(
            Expiry(
                name=name,
                authority="ca",
                expires_s=_end(certificate),
                externally_managed=external,
                problem=problem,
                renewal_s=renewal_s(certificate)
                if isinstance(certificate, x509.Certificate)
                else None,
            )
        )
    found.append(
        Expiry(
            name="ca",
            authority="",
            expires_s=_end(authority_pem),
            externally_managed=external,
            problem=authority_pem if isinstance(authority_pem, str) else "",
        )
    )
    return tuple(found)


def _is_foreign(
    certificate: x509.Certificate | None, authority: x509.Certificate | str | None
) -> bool:
    return (
        certificate is not None
        and isinstance(authority, x509.Certificate)
        and not is_issued_by(certificate, Authority(authority))
    )


def _quiet(path: Path) -> x509.Certificate | str | None:
    try:
        data = read(path)
        if data is None:
            return None
        if path.suffix == ".conf":
            return _client_of(data, path).certificate
        return load_certificate(data, name=str(path))
    except Malformed as exc:
        return str(exc)


def _end(certificate: x509.Certificate | str | None) -> float | None:
    if isinstance(certificate, x509.Certificate):
        return certificate.not_valid_after_utc.timestamp()
    return None


def renew(
    names: tuple[str, ...], layout: Layout, *, now_s: float, algorithm: str, validity_s: float
) -> tuple[Expiry, ...]:
    """Issue certificates again: same subject, names and usage, new key and time; return their new expiry.

    All or none. Raises NotFound for a name that is not there, Conflict for one of another authority, Malformed when
    the authority's key is not here.
    """
    settings = InitSettings(
        node="", server="", names=Names(), algorithm=algorithm, validity_s=validity_s
    )
    certificate_path, key_path = layout.certificate("ca"), layout.key("ca")
    pem = read(certificate_path)
    if pem is None:
        raise NotFound(
            f'{certificate_path}: no certificate authority here; "waypost init" makes one'
        )
    with locked(layout.pki):
        authority = load_authority(
            pem, read(key_path), name=str(certificate_path), key_name=str(key_path)
        )
        writes: list[FileWrite] = []
        renewed: list[Expiry] = []
        for name in names:
            if name not in RENEWABLE:
                raise NotFound(
                    f'no certificate "{name}" is renewed here; known are {", ".join(RENEWABLE)}'
                )
            expires_s = _renew_one(name, layout, authority, writes, now_s=now_s, settings=settings)
            renewed.append(Expiry(name=name, authority="ca", expires_s=expires_s))
        write_all(writes)
    return tuple(renewed)


def _renew_one(
    name: str,
    layout: Layout,
    authority: Authority,
    writes: list[FileWrite],
    *,
    now_s: float,
    settings: InitSettings,
) -> float:
    is_config = name.endswith(".conf")
    path = layout.kubeconfig(name) if is_config else layout.certificate(name)
    data = read(path)
    if data is None:
        raise NotFound(f'{path} is not there; "waypost init" makes it')
    client = _client_of(data, path) if is_config else None
    old = client.certificate if client else load_certificate(data, name=str(path))
    if not is_issued_by(old, authority):
        raise Conflict(
            f"{path}: the certificate is not one of {layout.certificate('ca')}, so it is not renewed"
        )
    issued, key = _issue_pair(
        authority,
        subject=old.subject,
        usages=usages_of(old),
        names=names_of(old),
        now_s=now_s,
        settings=settings,
    )
    if client is None:
        writes.append(FileWrite(layout.key(name), key, SECRET_MODE))
        writes.append(FileWrite(path, certificate_pem(issued), PUBLIC_MODE))
    else:
        fresh = kubeconfig.user_with_certificate(certificate_pem(issued), key)
        user = msgspec.structs.replace(
            client.config.users[client.user_name],
            client_certificate_data=fresh.client_certificate_data,
            client_key_data=fresh.client_key_data,
        )
        config = msgspec.structs.replace(
            client.config, users={**client.config.users, client.user_name: user}
        )
        writes.append(FileWrite(path, kubeconfig.to_yaml(config).encode(), SECRET_MODE))
    return issued.not_valid_after_utc.timestamp()


def renewal_s(certificate: x509.Certificate) -> float:
    """Return the moment at which two thirds of a certificate's life are over, in seconds since the Unix epoch."""
    start_s = certificate.not_valid_before_utc.timestamp()
    end_s = certificate.not_valid_after_utc.timestamp()
    return start_s + (end_s - start_s) * RENEW_AT


def needs_renewal(certificate: x509.Certificate, *, now_s: float) -> bool:
    """Tell whether two thirds of a certificate's life are over."""
    return now_s >= renewal_s(certificate)


SERVING: Final = "apiserver"


def serving_renewal_s(layout: Layout) -> float | None:
    """Return when the serving certificate should be issued again.

    None where that cannot be done or would not help: no certificate, no key of the authority here, a certificate of
    another authority, or one that ends with its authority. Raises Malformed for a file that cannot be read.
    """
    pem, authority_pem = read(layout.certificate(SERVING)), read(layout.certificate("ca"))
    if pem is None or authority_pem is None or not layout.key("ca").exists():
        return None
    certificate = load_certificate(pem, name=str(layout.certificate(SERVING)))
    authority = load_certificate(authority_pem, name=str(layout.certificate("ca")))
    if certificate.not_valid_after_utc >= authority.not_valid_after_utc:
        return None
    if not is_issued_by(certificate, Authority(authority)):
        return None
    return renewal_s(certificate)


def renew_serving(layout: Layout, *, now_s: float) -> Expiry:
    """Issue the serving certificate again, with the same kind of key and for as long as before. Raises as `renew`."""
    path = layout.certificate(SERVING)
    pem = read(path)
    if pem is None:
        raise NotFound(f'{path} is not there; "waypost init" makes it')
    old = load_certificate(pem, name=str(path))
    life = old.not_valid_after_utc - old.not_valid_before_utc
    public = old.public_key()
    (done,) = renew(
        (SERVING,),
        layout,
        now_s=now_s,
        algorithm=algorithm_of(public)
        if isinstance(public, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)
        else DEFAULT_ALGORITHM,
        validity_s=max(life.total_seconds() - BACKDATE_S, BACKDATE_S),
    )
    return done
