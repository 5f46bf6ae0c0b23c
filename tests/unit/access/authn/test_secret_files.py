"""Static tokens and basic passwords: the file format, who is known, what is said of faults."""

from __future__ import annotations

import base64
import logging

import pytest

from waypost.access.authn.records import Accepted, Credentials, Rejected, Skipped
from waypost.access.authn.secret_files import (
    BasicPasswords,
    StaticTokens,
    basic_credentials,
    read_records,
)
from waypost.base.errors import Malformed


@pytest.mark.parametrize(
    ("text", "records"),
    [
        ("", []),
        ("a,b,c", [["a", "b", "c"]]),
        ("a,b,c\n", [["a", "b", "c"]]),
        ("a,b,c\r\n\r\nd,e,f", [["a", "b", "c"], ["d", "e", "f"]]),
        (" a, b,c ", [[" a", " b", "c "]]),
        ('a,b,c,"g1,g2"', [["a", "b", "c", "g1,g2"]]),
        ('"say ""hi""",b,c', [['say "hi"', "b", "c"]]),
        ('"two\nlines",b,c\nd,e,f', [["two\nlines", "b", "c"], ["d", "e", "f"]]),
        ("a,,", [["a", "", ""]]),
        (",", [["", ""]]),
        ("# a,b,c", [["# a", "b", "c"]]),
    ],
)
def test_csv_as_go_reads_it(text, records):
    assert [fields for _, fields in read_records(text, name="f")] == records


def test_lines_are_counted_over_quoted_breaks():
    assert [line for line, _ in read_records('a\n\n"b\nc"\nd', name="f")] == [1, 3, 5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('a,b"c,d', 'f: line 1: bare " in a field that is not quoted'),
        ('x\na,"b', 'f: line 2: the closing " is missing'),
        ('a,"b"c', 'f: line 1: text after the closing "'),
    ],
)
def test_broken_csv(text, message):
    with pytest.raises(Malformed) as raised:
        read_records(text, name="f")
    assert str(raised.value) == message


def whose(tokens, token):
    return tokens.authenticate_token(token, audiences=(), now_s=0.0)


def test_tokens():
    tokens = StaticTokens.parse('t1,alice,1\nt2,bob,2,"g1, g2",ignored\n', name="f")
    assert whose(tokens, "t1").identity.user == "alice"
    assert whose(tokens, "t1").identity.groups == ()
    bob = whose(tokens, "t2").identity
    assert (bob.user, bob.uid, bob.groups) == ("bob", "2", ("g1", " g2"))
    for wrong in ("", "t", "t1 ", "T1", "t3", "tä", "\udcff"):
        assert isinstance(whose(tokens, wrong), Skipped)


def test_the_last_of_equal_tokens_wins_and_empty_ones_are_left_out(caplog):
    tokens = StaticTokens.parse("secret1,a,1\nsecret1,b,2\n,c,3\n", name="f.csv")
    assert whose(tokens, "secret1").identity.user == "b"
    assert isinstance(whose(tokens, ""), Skipped)
    assert [one.getMessage() for one in caplog.records] == [
        "token file f.csv: line 2 repeats a token; the last one wins",
        "token file f.csv: line 3 has an empty token and is ignored",
    ]
    assert "secret1" not in caplog.text


def test_too_few_columns():
    with pytest.raises(Malformed) as raised:
        StaticTokens.parse("sekret,b", name="t.csv")
    assert str(raised.value) == (
        "token file 't.csv' must have at least 3 columns (token, user name, user uid), found 2"
    )
    with pytest.raises(Malformed) as raised:
        BasicPasswords.parse("sekret", name="p.csv")
    assert str(raised.value) == (
        "password file 'p.csv' must have at least 3 columns (password, user name, user uid), found 1"
    )


def basic(text):
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("header", "kind", "user"),
    [
        (basic("carol:pw"), Accepted, "carol"),
        (basic("carol:pw").replace("Basic", "bASIC"), Accepted, "carol"),
        (basic("dan:a:b"), Accepted, "dan"),
        (basic("carol:pW"), Rejected, ""),
        (basic("carol:"), Rejected, ""),
        (basic("nobody:pw"), Rejected, ""),
        (basic("nobody:"), Rejected, ""),
        (basic("carol"), Skipped, ""),
        ("Basic !!!", Skipped, ""),
        ("Basic /w==", Skipped, ""),
        ("Basic", Skipped, ""),
        ("Bearer x", Skipped, ""),
        ("", Skipped, ""),
    ],
)
def test_basic(header, kind, user):
    passwords = BasicPasswords.parse("pw,carol,1,g\na:b,dan,2\n", name="f")
    verdict = passwords.authenticate(Credentials(authorization=header), now_s=0.0)
    assert isinstance(verdict, kind)
    if kind is Accepted:
        assert verdict.identity.user == user
    if kind is Rejected:
        assert verdict.error == "invalid username/password combination"


def test_a_password_may_be_anything():
    assert basic_credentials(basic("ü:pä:ss")) == ("ü", "pä:ss")


def test_a_repeated_user_is_warned_of(caplog):
    caplog.set_level(logging.WARNING)
    passwords = BasicPasswords.parse("first,carol,1\nsecond,carol,2\n", name="f")
    good = passwords.authenticate(Credentials(authorization=basic("carol:second")), now_s=0.0)
    assert isinstance(good, Accepted)
    assert "repeats the user 'carol'" in caplog.text
    assert "second" not in caplog.text
