from __future__ import annotations

import pytest

from waypost.cli.flags import HelpRequested, UsageError
from waypost.cli.main import dispatch


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("-address=web", '-address: "web" is no IP address'),
        ("-address=10.0.0.5:53", "is no IP address"),
        ("-address=0.0.0.0", "0.0.0.0 is no address that can be asked"),
        ("-docker-address=::", ":: is no address that can be asked"),
        ("-port=65536", "65536 is no port"),
        ("-port=-1", "-1 is no port"),
        ("-only=both", '"both" is neither "host" nor "docker"'),
        ("-domain=", "is no domain name"),
        ("-domain=a..b", "is no domain name"),
        ("-domain=consul/\nserver=1.1.1.1", "is no domain name"),
        ("-domain=" + 64 * "a", "is no domain name"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_looked_at(argument, words):
    # Whoever is asked for more than that looks at this machine; with -undo -dry-run nothing is changed in any case.
    with pytest.raises(UsageError) as caught:
        dispatch(["setup", "dns", "-undo", "-dry-run", argument])
    assert words in str(caught.value)


def test_nothing_is_undone_where_nothing_was_set_up(tmp_path, capsys):
    record = tmp_path / "none/dns.json"
    assert dispatch(["setup", "dns", "-undo", "-dry-run", f"-record={record}"]) == 0
    assert capsys.readouterr().out == f"Nothing to undo: {record} holds no change.\n"
    assert not record.parent.exists()


def test_the_help_says_how_to_look_first():
    with pytest.raises(HelpRequested) as caught:
        dispatch(["setup", "dns", "-h"])
    assert "waypost setup dns -dry-run" in caught.value.text
