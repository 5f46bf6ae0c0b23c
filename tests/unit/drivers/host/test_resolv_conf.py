from __future__ import annotations

import pytest

from waypost.drivers.host.resolv_conf import MARK, nameservers, put_first, rotates, searched

OURS = f"{MARK}nameserver 127.0.0.1\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", OURS),
        ("search lan", f"search lan\n{OURS}"),
        ("nameserver 10.0.0.1\n", f"{OURS}nameserver 10.0.0.1\n"),
        (
            "# c\nsearch lan\noptions ndots:2\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n",
            f"# c\nsearch lan\noptions ndots:2\n{OURS}nameserver 10.0.0.1\nnameserver 10.0.0.2\n",
        ),
        ("nameserver\t10.0.0.1", f"{OURS}nameserver\t10.0.0.1"),
        ("nameserver 127.0.0.1\nnameserver 10.0.0.1\n", None),
        (
            "nameserver 10.0.0.1\nnameserver 127.0.0.1\nnameserver 10.0.0.2\n",
            f"{OURS}nameserver 10.0.0.1\nnameserver 10.0.0.2\n",
        ),
        # Neither is a name server for glibc.
        (
            " nameserver 10.0.0.9\n#nameserver 10.0.0.8\nnameserver 10.0.0.1\n",
            f" nameserver 10.0.0.9\n#nameserver 10.0.0.8\n{OURS}nameserver 10.0.0.1\n",
        ),
        (
            "nameserver 10.0.0.1\noptions rotate\n",
            f"{OURS}nameserver 10.0.0.1\n",
        ),
        (
            "nameserver 10.0.0.1\noptions edns0 rotate timeout:1\n",
            f"{OURS}nameserver 10.0.0.1\noptions edns0 timeout:1\n",
        ),
        (
            "options rotate\nnameserver 127.0.0.1\nnameserver 10.0.0.1\n",
            "nameserver 127.0.0.1\nnameserver 10.0.0.1\n",
        ),
        ("nameserver 127.0.0.1\noptions rotate\n", None),
        ("nameserver 10.0.0.1\r\n", f"{OURS}nameserver 10.0.0.1\r\n"),
    ],
)
def test_the_agent_comes_first_and_all_else_stays(text, wanted):
    result = put_first(text, "127.0.0.1")
    assert result == (text if wanted is None else wanted)
    assert nameservers(result)[0] == "127.0.0.1"
    assert put_first(result, "127.0.0.1") == result


def test_reading():
    text = "domain a\nsearch lan home\n; nameserver 1.1.1.1\nnameserver ::1 x\noptions norotate\n"
    assert nameservers(text) == ("::1",)
    assert searched(text) == ("lan", "home")
    assert searched("") == ()
    assert not rotates(text)
    assert rotates("options ndots:1 rotate")
