"""The configuration of an etcd that the operator runs."""

from pathlib import Path

import pytest

from waypost.agent.config import read_files, resolve
from waypost.agent.external import EtcdConfig, external_etcd
from waypost.base.errors import Malformed
from waypost.cli.agent import AgentFlags, overrides
from waypost.cli.flags import parse
from waypost.store.etcd import EtcdTls


@pytest.fixture
def files(tmp_path):
    for name in ("ca.crt", "client.crt", "client.key", "password"):
        (tmp_path / name).write_text("geheim\n")
    return tmp_path


def settings(tmp_path, **values):
    return resolve({"data_dir": str(tmp_path / "data"), "bind_addr": "127.0.0.1"} | values)


def test_flags_and_files_say_the_same(files):
    flags, args = parse(
        AgentFlags,
        [
            "-etcd-servers=https://10.0.0.1:2379,https://10.0.0.2:2379",
            "-etcd-servers",
            "https://10.0.0.3:2379/",
            f"-etcd-cafile={files}/ca.crt",
            f"-etcd-certfile={files}/client.crt",
            f"-etcd-keyfile={files}/client.key",
            "-etcd-prefix=/here",
            "-etcd-username=w",
            f"-etcd-password-file={files}/password",
            "-etcd-compaction-interval=0",
        ],
    )
    assert args == []
    file = files / "agent.hcl"
    file.write_text(
        f"""
        etcd {{
          servers = ["https://10.0.0.1:2379", "https://10.0.0.2:2379", "https://10.0.0.3:2379"]
          cafile = "{files}/ca.crt"
          certfile = "{files}/client.crt"
          keyfile = "{files}/client.key"
          prefix = "/here/"
          username = "w"
          password_file = "{files}/password"
          compaction_interval = "0s"
        }}
        """
    )
    found = settings(files, **overrides(flags)).etcd
    assert found == settings(files, **read_files([file], [])).etcd
    assert found.servers == tuple(f"https://10.0.0.{n}:2379" for n in (1, 2, 3))
    assert found.prefix == b"/here/"
    assert found.tls == EtcdTls(
        ca_file=files / "ca.crt",
        certificate_file=files / "client.crt",
        key_file=files / "client.key",
    )
    assert found.auth.secret() == "geheim"
    assert found.compaction_s == 0
    assert "geheim" not in repr(found)


def test_without_more_than_urls():
    assert external_etcd(EtcdConfig()) is None
    plain = external_etcd(EtcdConfig(servers=("http://127.0.0.1:2379",)))
    assert (plain.tls, plain.auth, plain.prefix) == (None, None, b"/waypost/")
    assert plain.notes == ()
    assert plain.compaction_s == 300
    far = external_etcd(EtcdConfig(servers=("http://10.0.0.1:2379",)))
    assert "reads every secret" in far.notes[0]
    assert external_etcd(EtcdConfig(servers=("https://10.0.0.1:2379",))).tls == EtcdTls()


def test_it_makes_a_server(tmp_path):
    found = settings(tmp_path, etcd={"servers": ["http://127.0.0.1:2379"]})
    assert found.role == "server"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"servers": ["10.0.0.1:2379"]}, "etcd.servers: etcd endpoint '10.0.0.1:2379': expected"),
        ({"servers": ["https://a:1/v3"]}, "etcd.servers: etcd endpoint 'https://a:1/v3'"),
        ({"servers": ["https://u:p@a:1"]}, "etcd.servers"),
        ({"servers": [","]}, "etcd.servers: no URL"),
        ({"cafile": "/x"}, "etcd.cafile is given, but no etcd.servers"),
        (
            {"servers": ["https://a:1"], "certfile": "/x"},
            "etcd.keyfile is needed with etcd.certfile",
        ),
        (
            {"servers": ["https://a:1"], "keyfile": "/x"},
            "etcd.certfile is needed with etcd.keyfile",
        ),
        ({"servers": ["https://a:1"], "cafile": "/none"}, "etcd.cafile: /none: no such file"),
        ({"servers": ["https://a:1"], "username": "u"}, "etcd.password_file is needed"),
        ({"servers": ["https://a:1"], "password_file": "/x"}, "etcd.username is needed"),
        ({"servers": ["https://a:1"], "prefix": "/"}, "etcd.prefix: '/' is not a prefix"),
        ({"servers": ["https://a:1"], "prefix": ""}, "etcd.prefix: '' is not a prefix"),
        ({"servers": ["https://a:1"], "compaction_interval": "5"}, "etcd.compaction_interval"),
        ({"servers": ["https://a:1"], "compaction_interval": "1s"}, "too short; at least 10s"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, values, text):
    with pytest.raises(Malformed) as raised:
        settings(tmp_path, etcd=values)
    assert text in str(raised.value)


def test_certificates_want_tls(files):
    values = {"servers": ["https://a:1", "http://b:1"], "cafile": str(files / "ca.crt")}
    with pytest.raises(Malformed, match="http://b:1 does not use TLS"):
        settings(files, etcd=values)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"bootstrap_expect": 3}, "bootstrap_expect and etcd.servers are mutually exclusive"),
        ({"start_join": ["10.0.0.1"]}, "start_join and etcd.servers are mutually exclusive"),
        ({"retry_join": ["10.0.0.1"]}, "retry_join and etcd.servers are mutually exclusive"),
        ({"server": False}, "'server = false' and etcd.servers are mutually exclusive"),
    ],
)
def test_what_cannot_be_together(tmp_path, values, text):
    with pytest.raises(Malformed) as raised:
        settings(tmp_path, etcd={"servers": ["http://127.0.0.1:1"]}, **values)
    assert text in str(raised.value)


def test_dev_has_no_use_for_it():
    with pytest.raises(Malformed, match="-dev keeps nothing"):
        resolve({"etcd": {"servers": ["http://127.0.0.1:1"]}}, dev=True)


def test_a_misspelt_key_is_named(tmp_path):
    path = Path(tmp_path / "x.json")
    path.write_text('{"etcd": {"endpoints": []}}')
    with pytest.raises(Malformed, match="invalid config key `endpoints` - at `etcd"):
        read_files([path], [])
