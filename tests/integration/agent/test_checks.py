"""Checks run, and what they find reaches the catalog, DNS, nginx and templates."""

from __future__ import annotations

import json
import signal
import socket
import time

import pytest

from .process import Answer, free_ports

pytestmark = pytest.mark.needs("dig")


def own(agent, name):
    """Return the status and output of the check of a service."""
    found = [c for c in agent.get("/v1/agent/checks").values() if c["ServiceName"] == name]
    assert len(found) == 1
    return found[0]["Status"], found[0]["Output"]


@pytest.mark.needs("nginx")
def test_an_http_check_changes_health_dns_and_the_balancer(agent, upstream):
    servers = {name: upstream(name) for name in ("good", "dying")}
    for name, server in servers.items():
        agent.register(
            "shop", ID=name, port=server.port, Tags=["http"],
            Check={"HTTP": f"http://127.0.0.1:{server.port}/", "Interval": "1s", "Timeout": "1s"},
        )  # fmt: skip
    agent.eventually(lambda: agent.health("shop"), {"good": "passing", "dying": "passing"})
    agent.eventually(lambda: len(agent.dig("shop.service.consul", "SRV")), 2)
    agent.eventually(
        lambda: {agent.balanced("shop.example.com")[1] for _ in range(8)}, {"good", "dying"}
    )
    servers["dying"].close()
    agent.eventually(lambda: agent.health("shop"), {"good": "passing", "dying": "critical"})
    agent.eventually(lambda: len(agent.dig("shop.service.consul", "SRV")), 1)
    agent.eventually(lambda: {agent.balanced("shop.example.com")[1] for _ in range(8)}, {"good"})


def test_tcp(agent):
    (port,) = free_ports(1)
    with socket.create_server(("127.0.0.1", port)):
        agent.register("t", port=port, Check={"TCP": f"127.0.0.1:{port}", "Interval": "1s"})
        agent.eventually(lambda: own(agent, "t")[0], "passing")
    agent.eventually(lambda: own(agent, "t")[0], "critical")
    assert "refused" in own(agent, "t")[1]
    assert agent.dig("t.service.consul") == []


def test_script(agent, tmp_path):
    state = tmp_path / "state"
    state.write_text("0")
    agent.register(
        "s", port=1,
        Check={"Args": ["sh", "-c", f"echo it is $(cat {state}); exit $(cat {state})"], "Interval": "1s"},
    )  # fmt: skip
    for status, word in (("0", "passing"), ("1", "warning"), ("2", "critical")):
        state.write_text(status)
        agent.eventually(lambda w=word: own(agent, "s")[0], word)
        assert f"it is {status}" in own(agent, "s")[1]


def test_ttl(agent):
    agent.register("beat", port=1, Check={"TTL": "1s"})
    assert own(agent, "beat")[0] == "critical"
    agent.put("/v1/agent/check/pass/service:beat?note=alive")
    agent.eventually(lambda: own(agent, "beat"), ("passing", "alive"))
    assert agent.dig("beat.service.consul") == ["127.0.0.1"]
    agent.eventually(lambda: own(agent, "beat")[0], "critical")
    assert "TTL expired" in own(agent, "beat")[1]
    assert agent.dig("beat.service.consul") == []


def test_alias(agent):
    agent.register("target", port=1, Check={"TTL": "1h", "Status": "passing"})
    agent.register("shadow", port=2, Check={"AliasService": "target"})
    agent.eventually(lambda: own(agent, "shadow")[0], "passing")
    agent.put("/v1/agent/check/fail/service:target")
    agent.eventually(lambda: own(agent, "shadow")[0], "critical")
    agent.put("/v1/agent/service/deregister/target")
    agent.eventually(lambda: own(agent, "shadow")[0], "critical")


def test_scripts_are_refused_from_the_api_unless_allowed(make_agent):
    script = {"Args": ["true"], "Interval": "1s"}
    for flags in ((), ("-enable-local-script-checks",)):
        agent = make_agent(*flags).start()
        with pytest.raises(Answer, match=r"(?i)script") as refused:
            agent.register("s", port=1, Check=script)
        assert refused.value.status == 500
        assert agent.get("/v1/catalog/services") == {"consul": []}
        agent.close()


def test_scripts_of_files_with_the_local_flag(make_agent, tmp_path):
    agent = make_agent("-enable-local-script-checks")
    definition = {
        "name": "s",
        "check": {"args": ["touch", str(tmp_path / "ran")], "interval": "1s"},
    }
    (agent.config_dir / "s.json").write_text(json.dumps({"service": definition}))
    agent.start()
    agent.eventually(lambda: agent.health("s"), {"s": "passing"})
    assert (tmp_path / "ran").exists()


def test_scripts_that_were_allowed_once_do_not_run_any_more(make_agent, tmp_path):
    ran = tmp_path / "ran"
    agent = make_agent("-enable-script-checks").start()
    agent.register("s", port=1, Check={"Args": ["touch", str(ran)], "Interval": "1s"})
    agent.eventually(ran.exists)
    agent.terminate()
    ran.unlink()
    agent.command.remove("-enable-script-checks")
    agent.start()
    agent.eventually(lambda: own(agent, "s")[0], "critical")
    assert "enable_script_checks" in own(agent, "s")[1]
    time.sleep(1.2)
    assert not ran.exists()


def test_templates_of_the_agents_configuration(make_agent, tmp_path):
    agent = make_agent()
    out, told = tmp_path / "out", tmp_path / "told"
    (agent.config_dir / "t.hcl").write_text(
        f"""template {{
  contents = "{{{{ range service \\"web\\" }}}}{{{{ .Address }}}}:{{{{ .Port }}}};{{{{ end }}}}"
  destination = "{out}"
  command = "echo changed >> {told}"
}}
"""
    )
    agent.start()
    agent.register("web", ID="a", port=1)
    agent.eventually(out.read_text, "127.0.0.1:1;")
    agent.register("web", ID="b", port=2)
    agent.eventually(out.read_text, "127.0.0.1:1;127.0.0.1:2;")
    agent.put("/v1/agent/service/deregister/a")
    agent.eventually(out.read_text, "127.0.0.1:2;")
    agent.eventually(lambda: told.exists() and told.read_text().startswith("changed\nchanged\n"))
    agent.signal(signal.SIGHUP)
    agent.eventually(lambda: "configuration read again" in agent.log())
    agent.register("web", ID="c", port=3)
    agent.eventually(out.read_text, "127.0.0.1:2;127.0.0.1:3;")
