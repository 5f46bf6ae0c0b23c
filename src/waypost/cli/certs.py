"""`waypost certs`: check, renew."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import TYPE_CHECKING

from waypost.cli.agent_flags import no_arguments
from waypost.cli.flags import Command, Group, Settings, UsageError, duration, flag
from waypost.cli.output import is_json, print_json

if TYPE_CHECKING:
    from waypost.access.pki.setup import Expiry, Layout

SUMMARY = "Check and renew the certificates of access control"

EXIT_BAD = 2
_DAY_S = 86_400.0
_YEAR_S = 365 * _DAY_S


class CheckFlags(Settings):
    """Flags of `waypost certs check`."""

    data_dir: str = flag("", "Data directory of the agent; required.", value="dir")
    format: str = flag("pretty", "Output format {pretty|json}")
    warn: float = duration(
        0.0, "Exit with 2 also when a certificate has less than this left.", name="warn"
    )


class RenewFlags(Settings):
    """Flags of `waypost certs renew`."""

    data_dir: str = flag("", "Data directory of the agent; required.", value="dir")
    key_algorithm: str = flag(
        "ECDSA-P256",
        "Kind of the new keys: ECDSA-P256, ECDSA-P384, RSA-2048, RSA-3072, RSA-4096.",
        value="kind",
    )
    validity: float = duration(_YEAR_S, "How long the new certificates live.", name="validity")


def _layout(data_dir: str) -> Layout:
    if not data_dir:
        raise UsageError("-data-dir is required, such as -data-dir=/var/lib/waypost")
    from waypost.access.pki.setup import Layout

    return Layout(Path(data_dir).absolute())


def _check(settings: CheckFlags, args: list[str]) -> int:
    no_arguments(args)
    as_json = is_json(settings.format)
    layout = _layout(settings.data_dir)
    from waypost.access.pki.setup import expiries
    from waypost.base.clock import SystemClock

    now_s = SystemClock().wall()
    found = expiries(layout)
    bad = any(
        one.expires_s is None or one.problem or one.left_s(now_s=now_s) <= settings.warn
        for one in found
    )
    if as_json:
        print_json([_facts(one, now_s=now_s) for one in found])
    else:
        print(check_table(found, now_s=now_s))
        for one in found:
            if one.problem:
                print(f"\n{one.name}: {one.problem}")
        due = [one for one in found if one.is_due(now_s=now_s)]
        if due:
            print()
        for one in due:
            print(f"{one.name}: {_advice(one)}")
    return EXIT_BAD if bad else 0


def _advice(one: Expiry) -> str:
    """Return what to do about a certificate most of whose life is over."""
    text = "two thirds of its life are over; "
    if one.externally_managed:
        return text + "renew it where the key of its authority is"
    if one.name == "apiserver":
        text += "a running agent renews it by itself, "
    return text + f"waypost certs renew {one.name} issues it again"


def _facts(one: Expiry, *, now_s: float) -> dict[str, object]:
    end = one.expires_s
    return {
        "Name": one.name,
        "Authority": one.authority,
        "Expires": None if end is None else f"{_moment(end):%Y-%m-%dT%H:%M:%SZ}",
        "DaysLeft": None if end is None else int((end - now_s) // _DAY_S),
        "ExternallyManaged": one.externally_managed,
        "NeedsRenewal": one.is_due(now_s=now_s),
        "Problem": "missing" if end is None and not one.problem else one.problem,
    }


def check_table(found: tuple[Expiry, ...], *, now_s: float) -> str:
    """Return the two tables of `kubeadm certs check-expiration`: certificates, then authorities."""
    leaves = [one for one in found if one.authority]
    authorities = [one for one in found if not one.authority]
    head = ["EXPIRES", "RESIDUAL TIME"]
    first = [["CERTIFICATE", *head, "CERTIFICATE AUTHORITY", "EXTERNALLY MANAGED"]]
    first += [_row(one, [one.authority], now_s=now_s) for one in leaves]
    second = [["CERTIFICATE AUTHORITY", *head, "EXTERNALLY MANAGED"]]
    second += [_row(one, [], now_s=now_s) for one in authorities]
    return f"{_columns(first)}\n\n{_columns(second)}"


def _row(one: Expiry, authority: list[str], *, now_s: float) -> list[str]:
    if one.expires_s is None:
        return [f"{'!UNREADABLE!' if one.problem else '!MISSING!'} {one.name}"]
    managed = "yes" if one.externally_managed else "no"
    end = f"{_moment(one.expires_s):%b %d, %Y %H:%M UTC}"
    return [one.name, end, residual(one.expires_s - now_s), *authority, managed]


def residual(left_s: float) -> str:
    """Return a time span in kube's short form: `364d`, `9y`, `5h`; `<invalid>` when it is over."""
    if left_s <= 0:
        return "<invalid>"
    if left_s < 3600:
        return f"{int(left_s // 60)}m"
    if left_s < _DAY_S:
        return f"{int(left_s // 3600)}h"
    days = int(left_s // _DAY_S)
    return f"{days}d" if days < 365 * 2 else f"{days // 365}y"


def _columns(rows: list[list[str]]) -> str:
    width = [max(len(row[i]) for row in rows if len(row) > i) for i in range(len(rows[0]))]
    lines = [
        "   ".join(cell.ljust(width[i]) for i, cell in enumerate(row)).rstrip() for row in rows
    ]
    return "\n".join(lines)


def _moment(seconds: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(seconds, dt.UTC)


def _renew(settings: RenewFlags, args: list[str]) -> int:
    layout = _layout(settings.data_dir)
    from waypost.access.pki.setup import RENEWABLE, renew
    from waypost.base.clock import SystemClock

    if not args:
        raise UsageError(f"give all, or some of {', '.join(RENEWABLE)}")
    if settings.validity < 3600:
        raise UsageError("-validity: certificates have to live for an hour at least")
    names = tuple(dict.fromkeys(args))
    if "all" in names:
        names = tuple(
            name
            for name in RENEWABLE
            if (layout.kubeconfig(name) if "." in name else layout.certificate(name)).exists()
        )
    done = renew(
        names,
        layout,
        now_s=SystemClock().wall(),
        algorithm=settings.key_algorithm,
        validity_s=settings.validity,
    )
    for one in done:
        print(f"{_NOUNS[one.name]} renewed, until {_moment(one.expires_s or 0):%Y-%m-%d}")
    return 0


_NOUNS = {
    "admin.conf": "certificate embedded in the kubeconfig file admin.conf",
    "apiserver": "certificate for serving the API",
    "node.conf": "certificate embedded in the kubeconfig file node.conf",
    "operator.conf": "certificate embedded in the kubeconfig file operator.conf",
}

_CHECK = Command(
    "certs check [options]",
    "Shows when each certificate ends and how long that is away, and tells which should be renewed.\n\n"
    "Exit status 2 when one has expired, is missing or is not the authority's, or has less left than -warn.",
    settings=CheckFlags,
    action=_check,
)

COMMAND = Group(
    "certs <subcommand> [options] [args]",
    "Checks and renews the certificates that `waypost init` made.\n\n"
    "    $ waypost certs check -data-dir=/var/lib/waypost\n"
    "    $ waypost certs renew -data-dir=/var/lib/waypost all",
    commands={
        "check": ("Show when certificates end", _CHECK),
        "check-expiration": ("The same, by kubeadm's name", _CHECK),
        "renew": (
            "Issue certificates again",
            Command(
                "certs renew [options] <all|NAME...>",
                "Issues certificates again, all or none of those named: same subject and names, new key and time.\n"
                "The authority itself is not renewed. An agent takes the new files by `waypost reload`.",
                settings=RenewFlags,
                action=_renew,
            ),
        ),
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
