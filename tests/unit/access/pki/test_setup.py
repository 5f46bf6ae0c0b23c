"""`waypost init`, `certs check` and `certs renew`: what is made, kept, refused; modes; half-done states."""

from __future__ import annotations

import json
import stat
import time

import pytest
from msgspec.structs import replace

from waypost.access.pki import files
from waypost.access.pki.issue import Names, load_certificate, make_authority, names_of, usages_of
from waypost.access.pki.keys import generate_key, private_pem, public_pem
from waypost.access.pki.setup import (
    RENEWABLE,
    Action,
    InitSettings,
    Layout,
    expiries,
    initialise,
    needs_renewal,
    renew,
    renew_serving,
    serving_renewal_s,
)
from waypost.base.errors import Conflict, Malformed, NotFound, Unavailable
from waypost.cli.certs import check_table, residual, run
from waypost.wire import kubeconfig

NOW_S = 1_795_407_048.0
DAY_S = 86_400.0
NAMES = Names.of(["node1", "127.0.0.1", "::1"])
SETTINGS = InitSettings(node="node1", server="https://192.0.2.10:8501", names=NAMES)


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path / "data")


def content(layout):
    return {
        str(path.relative_to(layout.data_dir)): path.read_bytes()
        for path in sorted(layout.data_dir.rglob("*"))
        if path.is_file()
    }


def actions(done):
    return {step.name: step.action for step in done.steps}


def init(layout, *, now_s=NOW_S, **changes):
    return initialise(replace(SETTINGS, **changes), layout, now_s=now_s)


ALL = {"ca", "apiserver", "sa", "admin.conf", "operator.conf", "node.conf"}


def test_everything_is_made_with_its_mode(layout):
    done = init(layout)
    assert actions(done) == dict.fromkeys(ALL, Action.CREATED)
    modes = {
        str(path.relative_to(layout.data_dir)): stat.S_IMODE(path.stat().st_mode)
        for path in layout.data_dir.rglob("*")
    }
    assert modes == {
        "pki": 0o700,
        "pki/ca.crt": 0o644,
        "pki/ca.key": 0o600,
        "pki/apiserver.crt": 0o644,
        "pki/apiserver.key": 0o600,
        "pki/sa.key": 0o600,
        "pki/sa.pub": 0o600,
        "admin.conf": 0o600,
        "operator.conf": 0o600,
        "node.conf": 0o600,
    }


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("admin.conf", "CN=kubernetes-admin,O=system:masters"),
        ("operator.conf", "CN=waypost-operator,O=waypost:operators"),
        ("node.conf", "CN=system:node:node1,O=system:nodes"),
    ],
)
def test_who_the_kubeconfigs_are(layout, name, subject):
    init(layout)
    config = kubeconfig.parse(layout.kubeconfig(name).read_bytes(), name=name)
    context, cluster, user = config.context()
    pem = kubeconfig.decoded(user.client_certificate_data, what="")
    assert load_certificate(pem, name="c").subject.rfc4514_string() == subject
    assert cluster.server == "https://192.0.2.10:8501"
    ca = kubeconfig.decoded(cluster.certificate_authority_data, what="")
    assert ca == layout.certificate("ca").read_bytes()
    assert config.current_context == f"{context.user}@kubernetes"


def test_running_it_again_changes_nothing(layout):
    init(layout)
    before = content(layout)
    done = init(layout, now_s=NOW_S + 100 * DAY_S)
    assert set(actions(done).values()) == {Action.KEPT}
    assert done.warnings == ()
    assert content(layout) == before


def test_what_is_missing_is_made_again(layout):
    init(layout)
    before = content(layout)
    layout.kubeconfig("node.conf").unlink()
    layout.token_public_keys.unlink()
    done = init(layout)
    assert actions(done)["node.conf"] == Action.CREATED
    after = content(layout)
    assert after.pop("node.conf") != before.pop("node.conf")
    assert after == before


def test_new_names_get_a_new_serving_certificate_with_the_old_ones(layout):
    init(layout)
    done = init(layout, names=Names.of(["node1", "192.0.2.77"]))
    assert actions(done)["apiserver"] == Action.REISSUED
    found = load_certificate(layout.certificate("apiserver").read_bytes(), name="c")
    assert set(names_of(found).texts) == {"node1", "192.0.2.77", "127.0.0.1", "::1"}


def test_a_dry_run_touches_nothing(layout):
    done = initialise(SETTINGS, layout, now_s=NOW_S, dry_run=True)
    assert set(actions(done)) == ALL
    assert not layout.data_dir.exists()


def test_one_phase(layout):
    with pytest.raises(NotFound, match="run the phase certs first"):
        init(layout, phases=("kubeconfig",))
    init(layout, phases=("certs",))
    assert not layout.kubeconfig("admin.conf").exists()
    done = init(layout, phases=("kubeconfig",))
    assert layout.kubeconfig("admin.conf").exists()
    assert actions(done)["admin.conf"] == Action.CREATED


def refused(layout, error, match, **changes):
    before = content(layout)
    with pytest.raises(error, match=match):
        init(layout, **changes)
    assert content(layout) == before, "a refusal changes nothing"


def foreign():
    return make_authority(generate_key(), common_name="kubernetes", now_s=NOW_S)


def test_a_foreign_authority_is_never_overwritten(layout):
    init(layout)
    other = foreign()
    layout.certificate("ca").write_bytes(other.pem)
    refused(layout, Malformed, "is not the key of")
    layout.key("ca").write_bytes(private_pem(other.key))
    refused(layout, Conflict, r"apiserver.crt: the certificate is not one of")
    layout.certificate("apiserver").unlink()
    layout.key("apiserver").unlink()
    refused(layout, Conflict, "trusts another certificate authority")


def test_an_authority_that_is_only_a_certificate(layout):
    init(layout)
    layout.key("ca").unlink()
    assert set(actions(init(layout)).values()) == {Action.KEPT}
    layout.kubeconfig("admin.conf").unlink()
    refused(layout, Malformed, "the authority's key is not here")
    assert all(one.externally_managed for one in expiries(layout))


def test_a_key_without_its_certificate_is_used_again(layout):
    init(layout)
    pin = init(layout).pin
    layout.certificate("ca").unlink()
    done = init(layout)
    assert actions(done)["ca"] == Action.CREATED
    assert actions(done)["apiserver"] == Action.KEPT, "what the key signed is still good"
    assert done.pin == pin


def test_files_whose_authority_is_gone(layout):
    init(layout)
    layout.certificate("ca").unlink()
    layout.key("ca").unlink()
    refused(layout, Conflict, "without its authority")


@pytest.mark.parametrize(
    ("path", "data", "error", "match"),
    [
        ("pki/ca.crt", b"junk", Malformed, "ca.crt: no PEM certificate"),
        ("pki/ca.key", b"junk", Malformed, "ca.key: no unencrypted PEM private key"),
        ("pki/apiserver.crt", b"junk", Malformed, "apiserver.crt: no PEM certificate"),
        (
            "pki/apiserver.key",
            private_pem(generate_key()),
            Conflict,
            "apiserver.key is not the key",
        ),
        ("pki/sa.key", private_pem(generate_key()), Conflict, "does not hold the public key"),
        ("pki/sa.pub", b"junk", Malformed, "sa.pub: no PEM key"),
        ("admin.conf", b"junk: [", Malformed, "admin.conf.*no valid YAML"),
        ("admin.conf", b"", Malformed, "current-context is not set"),
    ],
)
def test_files_that_are_broken(layout, path, data, error, match):
    init(layout)
    (layout.data_dir / path).write_bytes(data)
    refused(layout, error, match)


def test_a_public_key_without_the_private_one(layout):
    init(layout)
    layout.key("sa").unlink()
    refused(layout, Conflict, "restore the key")


def test_further_verification_keys_stay(layout):
    init(layout)
    both = layout.token_public_keys.read_bytes() + public_pem(generate_key().public_key())
    layout.token_public_keys.write_bytes(both)
    assert actions(init(layout))["sa"] == Action.KEPT
    assert layout.token_public_keys.read_bytes() == both


def test_an_expired_authority(layout):
    init(layout)
    refused(layout, Conflict, "has expired", now_s=NOW_S + 3651 * DAY_S)


def test_expired_certificates_are_named(layout):
    init(layout)
    done = init(layout, now_s=NOW_S + 366 * DAY_S)
    assert 'apiserver has expired; "waypost certs renew apiserver" replaces it' in done.warnings


def test_secrets_that_others_could_read(layout):
    init(layout)
    layout.key("ca").chmod(0o644)
    done = init(layout)
    assert done.warnings == (f"{layout.key('ca')} could be read by others; its mode is 0600 now",)
    assert stat.S_IMODE(layout.key("ca").stat().st_mode) == 0o600


def test_another_server_is_told(layout):
    init(layout)
    done = init(layout, server="https://192.0.2.99:8501")
    assert len(done.warnings) == 3
    assert "keeps the server https://192.0.2.10:8501" in done.warnings[0]


def test_two_at_once(layout):
    init(layout)
    with files.locked(layout.pki):
        refused(layout, Conflict, "another waypost is changing it")


def test_a_full_disk_leaves_nothing_half(layout, monkeypatch):
    real = files._write_new
    count = 0

    def full(path, data, *, mode):
        nonlocal count
        count += 1
        if count == 5:
            path.touch()
            raise OSError(28, "No space left on device")
        real(path, data, mode=mode)

    monkeypatch.setattr(files, "_write_new", full)
    with pytest.raises(Unavailable, match="No space left on device"):
        init(layout)
    assert content(layout) == {}
    monkeypatch.undo()
    assert set(actions(init(layout)).values()) == {Action.CREATED}


# -- renewal -----------------------------------------------------------------------------------------------------------


def renewed(layout, *names, now_s):
    return renew(names, layout, now_s=now_s, algorithm="ECDSA-P256", validity_s=365 * DAY_S)


def certificate_of(layout, name):
    if not name.endswith(".conf"):
        return load_certificate(layout.certificate(name).read_bytes(), name=name)
    config = kubeconfig.parse(layout.kubeconfig(name).read_bytes(), name=name)
    pem = kubeconfig.decoded(config.context()[2].client_certificate_data, what="")
    return load_certificate(pem, name=name)


def test_renewal_keeps_subject_and_names_and_changes_key_and_time(layout):
    init(layout)
    before = {name: certificate_of(layout, name) for name in RENEWABLE}
    done = renewed(layout, *RENEWABLE, now_s=NOW_S + 300 * DAY_S)
    assert [one.name for one in done] == list(RENEWABLE)
    for name in RENEWABLE:
        after = certificate_of(layout, name)
        assert after.subject == before[name].subject
        assert names_of(after) == names_of(before[name])
        assert usages_of(after) == usages_of(before[name])
        assert after.public_key() != before[name].public_key()
        assert after.serial_number != before[name].serial_number
        assert after.not_valid_after_utc.timestamp() == NOW_S + 665 * DAY_S
    assert set(actions(init(layout, now_s=NOW_S + 300 * DAY_S)).values()) == {Action.KEPT}


def test_renewal_keeps_what_the_operator_added(layout):
    init(layout)
    path = layout.kubeconfig("admin.conf")
    config = kubeconfig.parse(path.read_bytes(), name="c")
    more = {**config.clusters, "second": kubeconfig.Cluster(server="https://second")}
    path.write_text(kubeconfig.to_yaml(replace(config, clusters=more)))
    renewed(layout, "admin.conf", now_s=NOW_S)
    after = kubeconfig.parse(path.read_bytes(), name="c")
    assert set(after.clusters) == {"kubernetes", "second"}


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("ca", NotFound, 'no certificate "ca" is renewed here'),
        ("../x", NotFound, "no certificate"),
    ],
)
def test_what_is_not_renewed(layout, name, error, match):
    init(layout)
    before = content(layout)
    with pytest.raises(error, match=match):
        renewed(layout, "apiserver", name, now_s=NOW_S)
    assert content(layout) == before


def test_renewal_needs_its_authority(layout):
    with pytest.raises(NotFound, match="waypost init"):
        renewed(layout, "apiserver", now_s=NOW_S)
    init(layout)
    other = foreign()
    layout.certificate("ca").write_bytes(other.pem)
    layout.key("ca").write_bytes(private_pem(other.key))
    with pytest.raises(Conflict, match="so it is not renewed"):
        renewed(layout, "apiserver", now_s=NOW_S)
    layout.key("ca").unlink()
    with pytest.raises(Conflict):
        renewed(layout, "apiserver", now_s=NOW_S)


def test_when_to_renew(layout):
    init(layout)
    found = certificate_of(layout, "apiserver")
    assert not needs_renewal(found, now_s=NOW_S + 243 * DAY_S)
    assert needs_renewal(found, now_s=NOW_S + 244 * DAY_S)


def test_the_serving_certificate_is_issued_again_as_it_was(layout):
    assert serving_renewal_s(layout) is None
    init(layout, algorithm="RSA-2048", validity_s=90 * DAY_S)
    due_s = serving_renewal_s(layout)
    assert due_s is not None
    assert NOW_S + 59 * DAY_S < due_s < NOW_S + 60 * DAY_S
    old = certificate_of(layout, "apiserver")
    done = renew_serving(layout, now_s=due_s)
    fresh = certificate_of(layout, "apiserver")
    assert done.expires_s == pytest.approx(due_s + 90 * DAY_S, abs=2)
    assert (fresh.subject, names_of(fresh), usages_of(fresh)) == (
        old.subject,
        names_of(old),
        usages_of(old),
    )
    assert fresh.public_key().key_size == 2048
    assert fresh.public_key() != old.public_key()
    assert serving_renewal_s(layout) > due_s + 59 * DAY_S


def test_what_cannot_be_renewed_here_or_would_not_live_longer_is_left_alone(layout):
    init(layout, validity_s=100 * 365 * DAY_S)  # ends with its authority
    assert serving_renewal_s(layout) is None
    renew(("apiserver",), layout, now_s=NOW_S, algorithm="ECDSA-P256", validity_s=DAY_S)
    assert serving_renewal_s(layout) is not None
    key = layout.key("ca").read_bytes()
    layout.key("ca").unlink()
    assert serving_renewal_s(layout) is None
    layout.key("ca").write_bytes(key)
    layout.certificate("ca").write_bytes(foreign().pem)
    assert serving_renewal_s(layout) is None


def test_the_check_tells_what_is_due(layout, capsys):
    now_s = time.time()
    init(layout, now_s=now_s - 300 * DAY_S)
    renew(("node.conf",), layout, now_s=now_s, algorithm="ECDSA-P256", validity_s=DAY_S)
    check = ["check", f"-data-dir={layout.data_dir}"]
    assert run(check) == 0
    said = capsys.readouterr().out
    assert (
        "admin.conf: two thirds of its life are over; waypost certs renew admin.conf issues" in said
    )
    assert "apiserver: two thirds of its life are over; a running agent renews it by itself" in said
    assert "node.conf: two" not in said
    assert run([*check, "-format=json"]) == 0
    rows = {one["Name"]: one["NeedsRenewal"] for one in json.loads(capsys.readouterr().out)}
    assert rows == {
        "admin.conf": True,
        "apiserver": True,
        "node.conf": False,
        "operator.conf": True,
        "ca": False,
    }


def test_the_table(layout):
    init(layout)
    layout.kubeconfig("node.conf").unlink()
    layout.kubeconfig("operator.conf").write_text("junk: [")
    shown = check_table(expiries(layout), now_s=NOW_S + 1).splitlines()
    assert shown == [
        "CERTIFICATE                  EXPIRES                  RESIDUAL TIME   CERTIFICATE AUTHORITY   EXTERNALLY MANAGED",
        "admin.conf                   Nov 23, 2027 04:10 UTC   364d            ca                      no",
        "apiserver                    Nov 23, 2027 04:10 UTC   364d            ca                      no",
        "!MISSING! node.conf",
        "!UNREADABLE! operator.conf",
        "",
        "CERTIFICATE AUTHORITY   EXPIRES                  RESIDUAL TIME   EXTERNALLY MANAGED",
        "ca                      Nov 20, 2036 04:10 UTC   9y              no",
    ]


@pytest.mark.parametrize(
    ("left_s", "text"),
    [
        (-1, "<invalid>"),
        (0, "<invalid>"),
        (60, "1m"),
        (7200, "2h"),
        (364.9 * DAY_S, "364d"),
        (3650 * DAY_S, "10y"),
    ],
)
def test_residual_time(left_s, text):
    assert residual(left_s) == text
