"""A session of 480 requests, recorded from Consul 1.8.7 in dev mode, against our API."""

from __future__ import annotations

from .replay import checked_server, differences, load, replay

OUT_OF_SCOPE = {
    "/v1/query": "prepared queries are not there yet",
    "/v1/config": "config entries are not there yet",
    "/v1/connect/": "intentions and the mesh's CA are not there yet",
    "/v1/agent/connect/": "the mesh is not there yet",
}
"""Path prefixes of pairs that are not compared, and why."""

DIFFERENT = {
    65: (['["service:web1:2"].Output'], "checks run at once, not after a part of their interval"),
    66: (['["service:web1:2"].Output'], "the same"),
    122: (["Checks[].Output"], "the same"),
}
"""Pairs of which some members differ on purpose: number, members, why."""
ANY_HEADER = {266: "Vary"}
"""266: a refused body ends the connection, nothing of it is negotiated."""


def test_every_pair_is_as_recorded(dev_api):
    pairs = load()
    compared, problems = 0, []
    with checked_server() as helper:
        for pair, status, sent, data in replay(pairs, dev_api, helper=helper):
            if pair["path"].startswith(tuple(OUT_OF_SCOPE)):
                continue
            compared += 1
            number = pair["n"]
            volatile, _ = DIFFERENT.get(number, ((), ""))
            headers = dict(sent)
            if number in ANY_HEADER:
                headers[ANY_HEADER[number]] = pair["headers"][ANY_HEADER[number]]
            wrong = differences(
                pair,
                status,
                headers,
                data,
                volatile=volatile,
            )
            if wrong:
                problems.append(
                    f"#{number} {pair['method']} {pair['path']}\n    " + "\n    ".join(wrong)
                )
    assert not problems, f"{len(problems)} of {compared} differ:\n" + "\n".join(problems)
    assert compared > 410
