"""`waypost token`: generate, create, list, delete."""

from __future__ import annotations

import base64
import datetime as dt
import http.client
import json
import os
import random
import ssl
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from waypost.base.errors import Malformed
from waypost.cli.agent_flags import CommandFailed, no_arguments
from waypost.cli.certs import residual
from waypost.cli.config import FileFlags, Files
from waypost.cli.flags import Command, Group, Settings, duration, flag, repeated
from waypost.cli.output import is_json, print_json, table

if TYPE_CHECKING:
    from waypost.wire.kubeconfig import Cluster, User

SUMMARY = "Make and manage bootstrap tokens"

_SECRETS: Final = "/api/v1/namespaces/kube-system/secrets"
_SELECTOR: Final = "?fieldSelector=type%3Dbootstrap.kubernetes.io%2Ftoken"
_DAY_S: Final = 86_400.0
_TIMEOUT_S: Final = 30.0


# -- the API -----------------------------------------------------------------------------------------------------------


class KubeApi:
    """Calls of the kube-style API with the credentials of a kubeconfig file.

    Where there is no such file, the agent of this machine is asked as everybody on it may: without access control that is
    enough.
    """

    def __init__(self, settings: FileFlags) -> None:
        cluster, self._user = _context(settings)
        parts = urlsplit(cluster.server)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandFailed(f'error: the server "{cluster.server}" is no http or https URL')
        self._server = cluster.server
        self._path = parts.path.rstrip("/")
        if parts.scheme == "https":
            context = _tls(cluster.certificate_authority_data, self._user)
            if cluster.insecure_skip_tls_verify:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port or 443, timeout=_TIMEOUT_S, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(
                parts.hostname, parts.port or 80, timeout=_TIMEOUT_S
            )

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the JSON of the answer. Raises CommandFailed with the server's message."""
        headers = {"Accept": "application/json", **_authorization(self._user)}
        data = None
        if body is not None:
            data = json.dumps(body)
            headers["Content-Type"] = "application/json"
        try:
            self._connection.request(method, self._path + path, data, headers)
            answer = self._connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as exc:
            raise CommandFailed(f"error: {self._server}: {exc}") from exc
        try:
            values = json.loads(content)
        except ValueError:
            values = {}
        if answer.status >= 400:
            message = values.get("message") if isinstance(values, dict) else None
            if answer.status == 401:
                message = "You must be logged in to the server (Unauthorized)"
            raise CommandFailed(f"error: {message or f'status {answer.status} of {self._server}'}")
        return values


def _context(settings: FileFlags) -> tuple[Cluster, User]:
    """Return where to ask and as whom. Raises CommandFailed."""
    from waypost.wire.kubeconfig import Cluster, User, flatten

    config = Files(settings.kubeconfig, os.environ).load(must_exist=True)
    if not config.clusters and not config.contexts:
        address = os.environ.get("CONSUL_HTTP_ADDR") or "127.0.0.1:8500"
        return Cluster(server=address if "://" in address else f"http://{address}"), User()
    try:
        _, cluster, user = flatten(config, lambda path: Path(path).read_bytes()).context()
    except Malformed as exc:
        raise CommandFailed(f"error: {exc}") from exc
    return cluster, user


def _tls(ca_data: str, user: User) -> ssl.SSLContext:
    from waypost.wire.kubeconfig import decoded

    try:
        ca = decoded(ca_data, what="certificate-authority-data").decode("ascii")
        context = ssl.create_default_context(cadata=ca or None)
        if user.client_certificate_data:
            pair = decoded(user.client_certificate_data, what="client-certificate-data")
            pair += b"\n" + decoded(user.client_key_data, what="client-key-data")
            # The standard library loads key pairs only from files; this one is gone at once.
            with tempfile.TemporaryDirectory(prefix="waypost-") as folder:
                path = Path(folder) / "pair.pem"
                path.touch(mode=0o600)
                path.write_bytes(pair)
                context.load_cert_chain(path)
    except (ssl.SSLError, ValueError, Malformed) as exc:
        raise CommandFailed(f"error: the kubeconfig's certificates cannot be used: {exc}") from exc
    return context


def _authorization(user: User) -> dict[str, str]:
    token = user.token
    if user.token_file:
        try:
            token = Path(user.token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as exc:
            raise CommandFailed(f"error: {user.token_file}: {exc}") from exc
    if token:
        return {"Authorization": f"Bearer {token}"}
    if user.username:
        pair = base64.b64encode(f"{user.username}:{user.password}".encode()).decode()
        return {"Authorization": f"Basic {pair}"}
    return {}


# -- commands ----------------------------------------------------------------------------------------------------------


def _generate(settings: Settings, args: list[str]) -> int:
    del settings
    no_arguments(args)
    from waypost.access.authn.bootstrap import generate_token

    print(generate_token(random.SystemRandom()).text)
    return 0


class CreateFlags(FileFlags):
    """Flags of `waypost token create`."""

    section = Settings.section

    description: str = flag("", "What the token is for, for people.", value="text")
    dry_run: bool = flag(False, "Print the secret as JSON (for kubectl apply), and store nothing.")
    groups: tuple[str, ...] = repeated(
        str,
        "Group of whoever uses the token, system:bootstrappers:…; may be given several times. "
        "system:bootstrappers:kubeadm:default-node-token by default.",
        value="group",
    )
    print_join_command: bool = flag(False, "Print the whole command for the joining machine.")
    ttl: float = duration(_DAY_S, "How long it is good; 0 for ever.", name="ttl")
    usages: tuple[str, ...] = repeated(
        str,
        "What it is good for, authentication or signing; may be given several times. Both by default.",
        value="usage",
    )


def _create(settings: CreateFlags, args: list[str]) -> int:
    from waypost.access.authn.bootstrap import (
        DEFAULT_GROUP,
        USAGES,
        generate_token,
        parse_token,
        token_secret,
    )
    from waypost.base.clock import SystemClock

    if len(args) > 1:
        raise CommandFailed(f"Too many arguments (expected at most 1, got {len(args)})")
    token = parse_token(args[0]) if args else generate_token(random.SystemRandom())
    if settings.ttl < 0:
        raise CommandFailed("-ttl must not be negative")
    secret = token_secret(
        token,
        expires_s=SystemClock().wall() + settings.ttl if settings.ttl else None,
        groups=settings.groups or (DEFAULT_GROUP,),
        usages=settings.usages or USAGES,
        description=settings.description,
    )
    if settings.dry_run:
        print_json(secret)
        return 0
    api = KubeApi(settings)
    api.call("POST", _SECRETS, secret)
    if settings.print_join_command:
        print(_join_command(api, settings, token.text))
    else:
        print(token.text)
    return 0


def _join_command(api: KubeApi, settings: FileFlags, token: str) -> str:
    """Return what is typed on the machine that joins: starting its agent is joining."""
    from waypost.access.pki.issue import ca_pin
    from waypost.access.pki.verify import load_bundle
    from waypost.wire.kubeconfig import decoded

    cluster, _ = _context(settings)
    contact = urlsplit(cluster.server).hostname or ""
    if cluster.certificate_authority_data:
        data = decoded(cluster.certificate_authority_data, what="certificate-authority-data")
    else:
        contact, data = _ask_agent(api, contact)
    words = ["waypost agent -data-dir /var/lib/waypost"]
    words.append(f"-join {contact} -join-token {token}")
    pins = [ca_pin(one) for one in load_bundle(data, name="the authority")] if data else []
    words += [f"-discovery-token-ca-cert-hash {pin}" for pin in pins]
    return " ".join(words)


def _ask_agent(api: KubeApi, host: str) -> tuple[str, bytes]:
    """Return where the agent that was asked is joined, and its cluster's authority, which its cluster port tells.

    The authority is empty, with a word to the operator, where it cannot be had, or only over a network that could change it.
    """
    from waypost.access.authn.local import is_loopback
    from waypost.cluster.messages import AUTHORITY_PATH
    from waypost.cluster.settings import ClusterPorts, join_host

    member = api.call("GET", "/v1/agent/self")["Member"]
    address, port = str(member["Addr"]), int(member["Port"])
    contact = address if port == ClusterPorts().cluster else join_host(address, port)
    if host != "localhost" and not is_loopback(host):
        _no_pin(f"{host} was asked over plain HTTP: ask on that machine itself")
        return contact, b""
    # It is this machine's own port; what it shows is what the pin is made of.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(address, port, timeout=_TIMEOUT_S, context=context)
    try:
        connection.request("GET", AUTHORITY_PATH)
        answer = connection.getresponse()
        data = answer.read()
    except (OSError, http.client.HTTPException) as exc:
        _no_pin(f"{join_host(address, port)}: {exc}")
        return contact, b""
    finally:
        connection.close()
    if answer.status != 200:
        _no_pin(data.decode("utf-8", "replace"))
        return contact, b""
    return contact, data


def _no_pin(why: str) -> None:
    print(
        f"Warning: the command names no authority, so the machine trusts the first it meets: {why}",
        file=sys.stderr,
    )


class ListFlags(FileFlags):
    """Flags of `waypost token list`."""

    section = Settings.section

    format: str = flag("pretty", "Output format {pretty|json}")


def _list(settings: ListFlags, args: list[str]) -> int:
    no_arguments(args)
    as_json = is_json(settings.format)
    from waypost.base.clock import SystemClock

    found = KubeApi(settings).call("GET", _SECRETS + _SELECTOR)
    items = found.get("items") or [] if isinstance(found, dict) else []
    rows = [_facts(one, now_s=SystemClock().wall()) for one in items if _is_token(one)]
    if as_json:
        print_json(rows)
    elif rows:
        head = ("TOKEN", "TTL", "EXPIRES", "USAGES", "DESCRIPTION", "EXTRA GROUPS")
        body = [[row[column] or "<none>" for column in head] for row in rows]
        print(table([list(head), *body]))
    return 0


def _is_token(secret: Any) -> bool:
    return isinstance(secret, dict) and secret.get("type") == "bootstrap.kubernetes.io/token"


def _facts(secret: dict[str, Any], *, now_s: float) -> dict[str, str]:
    def value(key: str) -> str:
        try:
            return base64.b64decode((secret.get("data") or {}).get(key, "")).decode()
        except ValueError:
            return ""

    expiration = value("expiration")
    try:
        left = residual(dt.datetime.fromisoformat(expiration).timestamp() - now_s)
    except ValueError:
        left = "<forever>" if not expiration else "<invalid>"
    usages = [
        one for one in ("authentication", "signing") if value(f"usage-bootstrap-{one}") == "true"
    ]
    return {
        # Only the public half: a list is looked at over shoulders and pasted into tickets.
        "TOKEN": value("token-id"),
        "TTL": left,
        "EXPIRES": expiration or "<never>",
        "USAGES": ",".join(usages),
        "DESCRIPTION": value("description"),
        "EXTRA GROUPS": value("auth-extra-groups"),
    }


def _delete(settings: FileFlags, args: list[str]) -> int:
    from waypost.access.authn.bootstrap import SECRET_PREFIX, parse_token_id

    if not args:
        raise CommandFailed("give the token, or its id, to delete")
    ids = [parse_token_id(one) for one in args]
    api = KubeApi(settings)
    for one in ids:
        api.call("DELETE", f"{_SECRETS}/{SECRET_PREFIX}{one}")
        print(f'bootstrap token "{one}" deleted')
    return 0


class NoFlags(Settings):
    """A command without flags."""


COMMAND = Group(
    "token <subcommand> [options] [args]",
    "Makes and manages bootstrap tokens, with which machines join: ID.SECRET, six and sixteen characters.\n\n"
    "    $ waypost token create -kubeconfig=/var/lib/waypost/operator.conf\n"
    "    $ waypost token list",
    commands={
        "generate": (
            "Print a new token, and store nothing",
            Command(
                "token generate",
                "Prints a new random token. It is good for nothing until `token create TOKEN` stores it.",
                settings=NoFlags,
                action=_generate,
            ),
        ),
        "create": (
            "Make a token",
            Command(
                "token create [options] [TOKEN]",
                "Makes a token (or takes the given one), stores it in the cluster, and prints it.",
                settings=CreateFlags,
                action=_create,
            ),
        ),
        "list": (
            "List the tokens",
            Command(
                "token list [options]",
                "Lists the tokens by their public half.",
                settings=ListFlags,
                action=_list,
            ),
        ),
        "delete": (
            "Delete tokens",
            Command(
                "token delete [options] <ID | TOKEN...>",
                "Deletes tokens: from then on nobody can join with them.",
                settings=FileFlags,
                action=_delete,
            ),
        ),
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
