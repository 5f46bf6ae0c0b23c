"""What all commands that speak to an agent share: the flags that say which agent and how, and the wording of errors."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from waypost.base.errors import Malformed, WaypostError
from waypost.cli.flags import Settings, flag

if TYPE_CHECKING:
    from waypost.client.transport import Client


class CommandFailed(WaypostError):
    """The command could not do what it should; the text is all that is printed (to standard error, status 1)."""

    code = "command"


class AgentFlags(Settings):
    """Flags of every command that asks an agent."""

    section = "HTTP API Options"

    ca_file: str = flag("", "CA file to trust for HTTPS. Also CONSUL_CACERT.", value="file")
    ca_path: str = flag(
        "", "Directory of CA files to trust for HTTPS. Also CONSUL_CAPATH.", value="dir"
    )
    client_cert: str = flag(
        "", "Client certificate to show to the agent. Also CONSUL_CLIENT_CERT.", value="file"
    )
    client_key: str = flag(
        "", "Key of the client certificate. Also CONSUL_CLIENT_KEY.", value="file"
    )
    http_addr: str = flag(
        "",
        "Address of the agent: host:port, http[s]://host:port or unix:///path/to/socket. Also CONSUL_HTTP_ADDR; "
        "http://127.0.0.1:8500 by default. CONSUL_HTTP_SSL=true makes https the default scheme.",
        value="address",
    )
    kubeconfig: str = flag(
        "",
        "Kubeconfig file that says where the agent is and who you are. Also KUBECONFIG, where neither -http-addr nor "
        "CONSUL_HTTP_ADDR is given.",
        value="file",
    )
    context: str = flag("", "Context of the kubeconfig file; its current one by default.")
    tls_server_name: str = flag(
        "", "Name to expect in the agent's certificate. Also CONSUL_TLS_SERVER_NAME.", value="name"
    )
    token: str = flag("", "Token to send. Also CONSUL_HTTP_TOKEN.", value="token")
    token_file: str = flag(
        "", "File that holds the token to send. Also CONSUL_HTTP_TOKEN_FILE.", value="file"
    )


class DatacenterFlags(AgentFlags):
    """Flags of every command that asks the cluster through an agent."""

    section = "HTTP API Options"

    datacenter: str = flag("", "Datacenter to ask; the agent's own by default.", value="datacenter")
    stale: bool = flag(
        False, "Let any server answer, also without a leader: faster, perhaps slightly old."
    )


def connect(settings: AgentFlags) -> Client:
    """Return a client for the flags and the environment. Raises CommandFailed in Consul's words."""
    from waypost.client.settings import Overrides, settings_from
    from waypost.client.transport import Client

    datacenter, stale = (
        (settings.datacenter, settings.stale)
        if isinstance(settings, DatacenterFlags)
        else ("", False)
    )
    overrides = Overrides(
        kubeconfig=settings.kubeconfig,
        context=settings.context,
        address=settings.http_addr,
        token=settings.token,
        token_file=settings.token_file,
        ca_file=settings.ca_file,
        ca_path=settings.ca_path,
        client_cert=settings.client_cert,
        client_key=settings.client_key,
        server_name=settings.tls_server_name,
        datacenter=datacenter,
        stale=stale,
    )
    try:
        return Client(settings_from(os.environ, overrides=overrides))
    except Malformed as exc:
        raise CommandFailed(f"Error connecting to Consul agent: {exc}") from exc


@contextmanager
def worded(what: str) -> Iterator[None]:
    """Put `what: ` before the text of an error that comes from the agent or the way to it."""
    from waypost.client.errors import UnexpectedResponse, Unreachable, UnreadableResponse

    try:
        yield
    except (UnexpectedResponse, Unreachable, UnreadableResponse) as exc:
        raise CommandFailed(f"{what}: {exc}") from exc


def no_arguments(args: list[str]) -> None:
    """Raise CommandFailed if there are any."""
    if args:
        raise CommandFailed(f"Too many arguments (expected 0, got {len(args)})")
