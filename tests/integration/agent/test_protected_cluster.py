"""Access control reaches a whole cluster by itself: real agents on loopback addresses of one machine."""

import base64
import contextlib
import json
import ssl
import stat
import time
import urllib.error
import urllib.request

import pytest
import yaml
from tests.integration.agent.process import Answer, free_ports
from tests.integration.agent.test_cluster import Site, command, put, refusal

from waypost.access.pki.issue import ca_pin, load_certificate

pytestmark = pytest.mark.needs("etcd")


class Machine:
    """One agent with an HTTPS port that it serves once it has a certificate."""

    def __init__(self, site, node, *flags):
        [self.https] = free_ports(1)
        self.agent = site.make(node, *flags, config={"ports": {"https": self.https}})
        config = json.loads((self.agent.config_dir / "00-base.json").read_text())
        config["ports"]["https"] = self.https
        (self.agent.config_dir / "00-base.json").write_text(json.dumps(config))

    @property
    def pki(self):
        return self.agent.data / "pki"

    def anonymous_write(self):
        """Return the status of a write without credentials over loopback."""
        return refusal(self.agent, "PUT", "/v1/kv/door", "open")[0]

    def as_admin(self, kubeconfig, method, path, body=None):
        """Ask this machine over HTTPS with the certificate of a kubeconfig file."""
        config = yaml.safe_load(kubeconfig.read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        ca = base64.b64decode(cluster["certificate-authority-data"]).decode()
        context = ssl.create_default_context(cadata=ca)
        pair = self.agent.folder / "pair.pem"
        pair.write_bytes(
            base64.b64decode(user["client-certificate-data"])
            + base64.b64decode(user["client-key-data"])
        )
        context.load_cert_chain(pair)
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.https}{path}", data=body, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=15, context=context) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            raise Answer(error.code, error.read().decode()) from None


def form(stack):
    """Return three servers of a cluster without access control."""
    site = Site(stack)
    first = Machine(site, "s1", "-server", "-bootstrap-expect=3")
    machines = [
        first,
        *(
            Machine(site, node, "-server", "-bootstrap-expect=3", f"-join={first.agent.lan}")
            for node in ("s2", "s3")
        ),
    ]
    for one in machines:
        one.agent.spawn()
    for one in machines:
        one.agent.wait_ready(within_s=60)
    return site, machines


def init(machine, *more):
    return command(
        machine.agent,
        "init",
        f"-data-dir={machine.agent.data}",
        f"-port={machine.https}",
        f"-node={machine.agent.node}",
        "-advertise=127.0.0.1",
        *more,
    )


def eventually_protected(machines, kubeconfig):
    for one in machines:
        one.agent.eventually(one.anonymous_write, 403, within_s=60)
        found = one.agent.eventually(
            lambda one=one: one.as_admin(kubeconfig, "PUT", "/v1/kv/by/admin", b"x"), within_s=30
        )
        assert found == "true"


def test_one_init_protects_three_servers_and_who_joins_them():
    with contextlib.ExitStack() as stack:
        site, machines = form(stack)
        first = machines[0]
        put(first.agent, "before", "kept")
        client = Machine(
            site, "c0", f"-join={first.agent.lan}", "-join-token=fedcba.0123456789abcdef"
        )
        words = ["token", "create", "-print-join-command", "fedcba.0123456789abcdef"]
        made = command(first.agent, *words)
        assert made.returncode == 0, made.stderr
        # The agent knows its cluster's authority, and where it is joined.
        authority = first.agent.data / "cluster" / "ca.crt"
        pin = ca_pin(load_certificate(authority.read_bytes(), name="ca"))
        assert made.stdout.endswith(f"-discovery-token-ca-cert-hash {pin}\n"), made.stderr
        assert f"-join {first.agent.lan} " in made.stdout
        client.agent.start(within_s=30)
        assert client.anonymous_write() == 200

        made = init(first)
        assert made.returncode == 0, made.stderr
        assert "hands these files to the other servers" in made.stdout + made.stderr
        admin = first.agent.data / "admin.conf"
        eventually_protected(machines, admin)
        assert len({(one.pki / "sa.key").read_bytes() for one in machines}) == 1
        for one in machines:
            for name in ("ca.key", "sa.key", "apiserver.key"):
                assert stat.S_IMODE((one.pki / name).stat().st_mode) == 0o600
            assert one.as_admin(admin, "GET", "/v1/kv/before?raw") == "kept"
        # One after the other: writes were refused by nobody for long, and none started more than once.
        assert [one.agent.log().count("starting again with") for one in machines] == [1, 1, 1]
        # A client agent that was there already.
        client.agent.eventually(client.anonymous_write, 403, within_s=30)

        # One that comes now: never open, whatever it is told about access control, which is nothing.
        operator = f"-kubeconfig={first.agent.data / 'operator.conf'}"
        made = ["token", "create", operator, "-print-join-command"]
        # The leader has to write the policy first that lets an operator do this.
        line = first.agent.eventually(
            lambda: (done := command(first.agent, *made)).returncode == 0 and done.stdout,
            within_s=30,
        )
        words = line.split()
        token = words[words.index("-join-token") + 1]
        pin = words[words.index("-discovery-token-ca-cert-hash") + 1]
        late = Machine(
            site,
            "c1",
            f"-join={first.agent.lan}",
            f"-join-token={token}",
            f"-discovery-token-ca-cert-hash={pin}",
        )
        late.agent.spawn()
        seen = set()
        deadline = time.monotonic() + 40
        while 403 not in seen and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                seen.add(late.anonymous_write())
        assert 403 in seen
        assert 200 not in seen
        late.agent.wait_ready(within_s=30)

        # Everything restarts, and is protected from its first answer on.
        everybody = [*machines, client, late]
        for one in everybody:
            one.agent.kill()
        for one in everybody:
            one.agent.spawn()
        answers = set()
        for one in everybody:
            one.agent.wait_ready(within_s=60)
            answers.add(one.anonymous_write())
        assert answers == {403}
        eventually_protected(machines, admin)


@pytest.mark.long
def test_two_inits_with_other_keys_change_nothing():
    with contextlib.ExitStack() as stack:
        _, machines = form(stack)
        one, two, three = machines
        two.agent.kill()
        assert init(two).returncode == 0
        mine = (two.pki / "sa.key").read_bytes()
        assert init(one).returncode == 0
        for machine in (one, three):
            machine.agent.eventually(machine.anonymous_write, 403, within_s=60)
        two.agent.start(within_s=60)
        for machine in machines:
            machine.agent.eventually(
                lambda machine=machine: "two runs of waypost init" in machine.agent.log(), True
            )
        assert (two.pki / "sa.key").read_bytes() == mine != (one.pki / "sa.key").read_bytes()
        assert (one.pki / "sa.key").read_bytes() == (three.pki / "sa.key").read_bytes()
        said = init(two)
        assert "two runs of waypost init" in said.stdout + said.stderr

        # The way out that the text names.
        two.agent.kill()
        two.pki.rename(two.agent.folder / "away")
        two.agent.spawn()
        two.agent.eventually(
            lambda: (two.pki / "sa.key").read_bytes() == (one.pki / "sa.key").read_bytes(),
            True,
            within_s=60,
        )
        two.agent.eventually(
            lambda: two.as_admin(one.agent.data / "admin.conf", "PUT", "/v1/kv/x", b"y"),
            "true",
            within_s=60,
        )
