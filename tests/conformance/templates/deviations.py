"""Cases whose recorded outcome is deliberately not ours, each with the reason.

Recorded with consul-template 0.19.5 (Go 1.19). `ACCEPTED` maps a case to what ours writes instead of the recorded
error: later versions of Go or consul-template accept these templates, so must we. `NO_VAULT` needs a Vault server.
"""

from __future__ import annotations

ACCEPTED: dict[str, tuple[str, bytes]] = {
    "049": ("`else with` since Go 1.23", b"b\n"),
    "065": ("`range` over an integer since Go 1.24", b"xxx\n"),
    "080": ("an error on data that has not arrived yet is no error", b"alpha 2 deep true\n"),
    "092": ("ServiceMeta since consul-template 0.20", b"eueuus\n"),
    "146": ("`loop` takes every integer since consul-template 0.21.1", b"01\n"),
    "170": ("toJSONPretty takes anything in later versions", b"[\n  1\n]\n"),
    "227": ("an error on data that has not arrived yet is no error", b"alpha:web1:80\n"),
    "229": (
        "sha256Hex since consul-template 0.25",
        b"2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881\n",
    ),
    "272": ("`=` and `:` in a tag since consul-template 0.22", b"[]\n"),
}

NO_VAULT = {
    "221": "a secret that is there",
    "223": "a secret that is not there: ours refuses before asking",
}
