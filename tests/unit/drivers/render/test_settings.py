"""What users write: template specs, waits, configuration files, flags, queries."""

from __future__ import annotations

import pytest

from waypost.base.errors import Malformed
from waypost.cli.flags import parse
from waypost.cli.template_settings import ConfigFailure, FlagFailure, TemplateFlags, plan
from waypost.drivers.render import dependency as ask
from waypost.drivers.render.quiescence import Quiescence
from waypost.drivers.render.settings import Retry, TemplateSpec, Wait


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("in:out", ("in", "out", "")),
        ("in", ("in", "", "")),
        ("in:out:nginx -s reload", ("in", "out", "nginx -s reload")),
        ("in:out:a:b", ("in", "out", "a:b")),
        ("in::cmd", ("in", "cmd", "")),
        ("a:b", ("a:b", "", "")),
        (r"c:\x:d:\y:run", (r"c:\x", r"d:\y", "run")),
    ],
)
def test_template_spec(text, parts):
    spec = TemplateSpec.parse(text)
    assert (spec.source, spec.destination, spec.command) == parts


def test_wait():
    assert Wait.parse("5s:20s") == Wait(5.0, 20.0)
    assert Wait.parse("1s") == Wait(1.0, 4.0)
    for bad in ("", "1s:2s:3s", "5", "-1s", "5s:1s"):
        with pytest.raises(Malformed):
            Wait.parse(bad)


def test_quiescence_moves_up_to_its_maximum():
    quiet = Quiescence(Wait(1.0, 2.5))
    assert quiet.due is None
    due = []
    for now in (10.0, 10.8, 11.6, 12.4):
        quiet.change(now)
        due.append(quiet.due)
    assert due == [11.0, 11.8, 12.5, 12.5]
    quiet.clear()
    quiet.change(20.0)
    assert quiet.due == 21.0


def test_retry_delays():
    retry = Retry(attempts=4, backoff_s=0.25, max_backoff_s=1.0)
    assert [retry.delay_s(n) for n in range(1, 6)] == [0.25, 0.5, 1.0, 1.0, None]
    assert Retry(enabled=False).delay_s(1) is None
    assert Retry(attempts=0).delay_s(99) == 60.0


def planned(*argv, env=None):
    return plan(parse(TemplateFlags, list(argv))[0], env=env or {})


def test_config_file_and_flags(tmp_path):
    file = tmp_path / "a.hcl"
    file.write_text(
        """
        consul { address = "c:1"  retry { attempts = 3  backoff = "1s" } }
        wait = "5s:10s"
        log_level = "info"
        template { source = "a"  destination = "b"  perms = 0600  wait { min = "1s" max = "2s" } }
        template { contents = "x"  destination = "c"  command = "d"  command_timeout = "5s" }
        """
    )
    made = planned(f"-config={file}", "--consul-addr=d:2", "-template", "ee:f", "-once")
    assert [each.destination for each in made.runner.templates] == ["b", "c", "f"]
    first, second, _ = made.runner.templates
    assert (first.perms, first.wait) == (0o600, Wait(1.0, 2.0))
    assert (second.command, second.command_timeout_s) == ("d", 5.0)
    assert (made.consul.address, made.runner.retry.attempts, made.runner.retry.backoff_s) == (
        "d:2",
        3,
        1.0,
    )
    assert (made.runner.once, made.runner.wait, made.log_level) == (True, Wait(5.0, 10.0), "info")


def test_environment():
    made = planned(env={"CONSUL_HTTP_ADDR": "x:1", "CONSUL_TOKEN": "t", "CT_LOG": "debug"})
    assert (made.consul.address, made.consul.token, made.log_level) == ("x:1", "t", "debug")
    assert "t" not in repr(made.consul).replace("token", "").replace("ConsulSettings", "").replace(
        "address", ""
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"template": [{"source": "a", "sauce": 1}]}', "template 1: unknown key: sauce"),
        ('{"template": [{"source": 1}]}', "template 1.source: expected a text, got a number"),
        ('{"template": [{"perms": "999"}]}', "template 1.perms: expected permissions"),
        ('{"wait": {"min": "5"}}', 'wait.min: time: missing unit in duration "5"'),
        ('{"consul": {"retry": {"attempts": "x"}}}', "consul.retry.attempts: expected a number"),
        ('{"kill_signal": "SIGNOPE"}', 'config.kill_signal: unknown signal "SIGNOPE"'),
        ('{"nonsense": 1}', "config: unknown key: nonsense"),
        ('{"log_level": "error"}', "invalid log level"),
        ("{", "failed to parse"),
    ],
)
def test_wrong_config(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigFailure, match=message.replace("(", r"\(")):
        planned("-config", str(tmp_path / "c.json"))


@pytest.mark.parametrize("argv", [("-wait", "x"), ("-template", " "), ("-kill-signal", "NOPE")])
def test_wrong_flags(argv):
    with pytest.raises(FlagFailure):
        planned(*argv)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("web", "health.service(web|passing)"),
        ("a.b.web@dc1~near|any", "health.service(a.b.web@dc1~near|any)"),
        ("web|warning,passing", "health.service(web|passing,warning)"),
    ],
)
def test_service_query(text, name):
    assert str(ask.service(text)) == name


def test_other_queries():
    assert str(ask.key("/a/b@dc", blocks=True)) == "kv.block(a/b@dc)"
    assert str(ask.node("n@dc")) == "catalog.node(n@dc)"
    assert str(ask.nodes("@dc~x")) == "catalog.nodes(@dc~x)"
    assert str(ask.services("")) == "catalog.services"
    for wrong in (lambda: ask.services("dc1"), lambda: ask.nodes("x"), lambda: ask.service("a b")):
        with pytest.raises(Malformed, match="invalid format"):
            wrong()
    with pytest.raises(Malformed, match='invalid filter: "x" in "web|x"'.replace("|", r"\|")):
        ask.service("web|x")
