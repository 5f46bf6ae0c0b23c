"""Flags are read as Go's package `flag` reads them."""

from __future__ import annotations

import pytest

from waypost.base.errors import Malformed
from waypost.cli.flags import (
    Command,
    Group,
    HelpRequested,
    Settings,
    UsageError,
    boolean,
    duration,
    flag,
    integer,
    key_value,
    parse,
    repeated,
    unsigned,
)


class Common(Settings):
    section = "Shared"

    token: str = flag("", "A secret.", value="token")


class Example(Common):
    detailed: bool = flag(False, "More.")
    shell: bool = flag(True, "On by default.")
    limit: int = flag(1, "How many.", name="n")
    wait_s: float = duration(0.0, "How long.", name="wait")
    tags: tuple[str, ...] = repeated(str, "Tags.", name="tag")
    node_meta: tuple[tuple[str, str], ...] = repeated(key_value, "Pairs.", value="key=value")
    flags: int = flag(0, "A flag may be called flags.", parse=unsigned)


@pytest.mark.parametrize(
    "words", [["-n", "7"], ["-n=7"], ["--n", "7"], ["--n=7"], ["-n", "1", "-n=7"]]
)
def test_every_way_to_give_a_value(words):
    settings, rest = parse(Example, [*words, "arg"])
    assert (settings.limit, rest) == (7, ["arg"])


@pytest.mark.parametrize(
    ("words", "detailed", "rest"),
    [
        ([], False, []),
        (["-detailed"], True, []),
        (["--detailed"], True, []),
        (["-detailed=false"], False, []),
        (["-detailed=T"], True, []),
        (["-detailed", "-detailed=0"], False, []),
        (["-detailed", "false"], True, ["false"]),
        (["--", "-detailed"], False, ["-detailed"]),
        (["arg", "-detailed"], False, ["arg", "-detailed"]),
        (["-", "-detailed"], False, ["-", "-detailed"]),
    ],
)
def test_booleans_and_the_end_of_flags(words, detailed, rest):
    settings, found = parse(Example, words)
    assert (settings.detailed, found) == (detailed, rest)


def test_values_that_look_like_flags_are_values():
    settings, rest = parse(Example, ["-token", "-n", "-n", "-5", "x"])
    assert (settings.token, settings.limit, rest) == ("-n", -5, ["x"])


def test_repeated_flags_keep_their_order():
    settings, _ = parse(
        Example, ["-tag=b", "-node-meta", "k=v=w", "-tag", "a", "-tag=", "-node-meta==x"]
    )
    assert settings.tags == ("b", "a", "")
    assert settings.node_meta == (("k", "v=w"), ("", "x"))


def test_durations_are_seconds():
    assert parse(Example, ["-wait=1m30.5s"])[0].wait_s == 90.5


def test_what_was_given_is_known():
    assert parse(Example, ["-n=1", "--detailed=false"])[0].given == {"n", "detailed"}
    assert parse(Example, [])[0].given == frozenset()


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("-bogus", "flag provided but not defined: -bogus"),
        ("--bogus=1", "flag provided but not defined: -bogus"),
        ("-detailed=maybe", 'invalid boolean value "maybe" for -detailed: parse error'),
        ("-n", "flag needs an argument: -n"),
        ("-n=x", 'invalid value "x" for flag -n: parse error'),
        (
            "-n=9223372036854775808",
            'invalid value "9223372036854775808" for flag -n: value out of range',
        ),
        ("-flags=-1", 'invalid value "-1" for flag -flags: parse error'),
        ("-node-meta=x", 'invalid value "x" for flag -node-meta: Missing "=" value in argument: x'),
        ("--=", "bad flag syntax: --="),
        ("---n", "bad flag syntax: ---n"),
        ("-=1", "bad flag syntax: -=1"),
    ],
)
def test_errors_have_gos_words(word, text):
    with pytest.raises(UsageError) as caught:
        parse(Example, [word])
    assert str(caught.value) == text


def test_a_misspelt_flag_gets_a_suggestion():
    with pytest.raises(UsageError) as caught:
        parse(Example, ["-detail"])
    assert caught.value.suggestion == "Did you mean -detailed?"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("-3", -3),
        ("+3", 3),
        ("0x1F", 31),
        ("0b101", 5),
        ("0o17", 15),
        ("017", 15),
        ("1_000", 1000),
    ],
)
def test_numbers_are_gos(text, number):
    assert integer(text) == number


@pytest.mark.parametrize("text", ["", " 1", "1 ", "1.0", "0x", "09", "١", "1__0", "--1", "1e3"])
def test_numbers_that_are_none(text):
    with pytest.raises(Malformed):
        integer(text)


@pytest.mark.parametrize(
    ("text", "fits"),
    [("18446744073709551615", True), ("18446744073709551616", False), ("+1", False)],
)
def test_unsigned_numbers(text, fits):
    if fits:
        assert unsigned(text) == int(text)
    else:
        with pytest.raises(Malformed):
            unsigned(text)


@pytest.mark.parametrize("text", ["yes", "TrUe", "", "on", "2"])
def test_booleans_that_are_none(text):
    with pytest.raises(Malformed):
        boolean(text)


def test_settings_are_frozen_and_hide_tokens():
    settings = Example(token="s3cret", limit=2)
    assert "s3cret" not in repr(settings)
    with pytest.raises(AttributeError):
        settings.limit = 3
    with pytest.raises(TypeError):
        Example(nonsense=1)


def _echo(settings: Example, args: list[str]) -> int:
    if args == ["bad"]:
        raise UsageError("that is bad")
    return settings.limit


COMMAND = Command("echo [options] [args]", "Echoes.", settings=Example, action=_echo)


def test_a_command_gives_its_help():
    with pytest.raises(HelpRequested) as caught:
        COMMAND.run(["-detailed", "-h"])
    lines = caught.value.text.splitlines()
    assert lines[:5] == [
        "Usage: waypost echo [options] [args]",
        "",
        "  Echoes.",
        "",
        "Command Options",
    ]
    assert lines.index("Command Options") < lines.index("Shared")
    assert "  -node-meta=<key=value>" in lines
    assert "  -detailed" in lines
    assert max(map(len, lines)) <= 80


def test_an_error_of_a_command_shows_its_own_options_only():
    for argv in (["-bogus"], ["bad"]):
        with pytest.raises(UsageError) as caught:
            COMMAND.run(argv)
        assert "-detailed" in caught.value.usage
        assert "-token" not in caught.value.usage
        assert '"waypost echo -h"' in caught.value.usage


def test_groups_find_their_commands():
    group = Group("outer <subcommand>", "", commands={"echo": ("Echo", COMMAND)})
    assert group.run(["echo", "-n=4"]) == 4
    with pytest.raises(HelpRequested, match="echo    Echo"):
        group.run(["--help"])
    for argv in ([], ["nope"]):
        with pytest.raises(UsageError):
            group.run(argv)
