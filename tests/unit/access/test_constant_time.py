"""Secrets are compared in a time that says nothing about them: `hmac.compare_digest`, or found by a digest.

This reads the source: each comparison with `==`, `!=` or `in` of something that is named like a secret has to be listed
here with the reason why it may stay. What is compared with a literal or with a constant is no secret.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import waypost

ROOT = Path(waypost.__file__).parent
PACKAGES = ("access", "agent", "cluster", "domain", "surfaces", "state", "store", "client")
SUSPICIOUS = re.compile(
    r"(^|_)(tokens?|secrets?|passwords?|passwd|digests?|signatures?|h?mac|credentials?|psk|cookie|shown|presented)($|_)"
)
MAY_STAY = {
    "secret.value('token-id') != shown.id": "the id of a bootstrap token is public; its name holds it",
    "issuer_of(token) != self._settings.issuer": "an issuer's URL is public",
    "entry.digest in entries": "read at the start, from the file itself",
    "n in _CREDENTIAL_HEADERS": "a field's name",
    "lower in ('authorization', CONSUL_TOKEN_HEADER)": "a field's name",
    "_pin_of(message.secrets) != message.plan.authority": "a fingerprint of a certificate is public",
    "shown != fingerprint": "a fingerprint of a certificate is public",
    "name in secrets.pki": "a file's name",
    "request.query.get('hash') == shown.ContentHash": "the hash of what is shown",
    "shown.ContentHash != request.query.get('hash')": "the hash of what is shown",
    "result == shown": "the status of a check",
    "kinds.token_account(resource, value) == account.name": "a service account's name",
    "signature == self._signature": "times and sizes of files",
    "self._token == token": "etcd's own token, as this process sent it",
}
A_PLAN = re.compile(r"^(state\.)?(plan\.)?(cluster|token) ?(==|!=|in)|plan\.token (==|!=|in) ")
"""The cluster calls the name of a plan a token, as etcd does; it is told to everybody who is asked to vote."""
USES = {
    "access/authn/bootstrap.py": 2,
    "access/authn/secret_files.py": 2,
    "access/authn/service_account.py": 1,
}
"""How many comparisons of secrets there are where; each has tests of its own."""


def comparisons(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the text and line of each comparison of what is named like a secret."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Compare):
            continue
        if not any(isinstance(one, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for one in node.ops):
            continue
        sides = (node.left, *node.comparators)
        if any(_is_known(one) for one in sides):
            continue
        if any(SUSPICIOUS.search(name.lower()) for one in sides for name in _names(one)):
            yield ast.unparse(node), node.lineno


def _is_known(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return all(_is_known(one) for one in node.elts)
    return isinstance(node, ast.Name) and node.id.isupper()


def _names(node: ast.expr) -> Iterator[str]:
    for one in ast.walk(node):
        if isinstance(one, ast.Name):
            yield one.id
        elif isinstance(one, ast.Attribute):
            yield one.attr
        elif isinstance(one, ast.Constant) and isinstance(one.value, str):
            yield one.value.replace("-", "_")


def test_no_secret_is_compared_byte_by_byte() -> None:
    found = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            for text, line in comparisons(path):
                is_plan = name in ("cluster/protocol.py", "cluster/forming.py")
                if text in MAY_STAY or (is_plan and A_PLAN.search(text)):
                    continue
                found.append(f"{name}:{line}: {text}")
    assert not found, "hmac.compare_digest, or a reason here:\n" + "\n".join(found)


def test_the_search_finds_what_it_looks_for(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(
        "a = entry.token == shown\n"
        "b = password in passwords\n"
        "c = headers['x-consul-token'] != wanted\n"
        "d = token == ''\n"
        "e = kind == BEARER_TOKEN\n"
        "f = name == other\n"
    )
    assert [line for _, line in comparisons(file)] == [1, 2, 3]


def test_secrets_are_compared_where_they_are_believed() -> None:
    found = {}
    for path in sorted((ROOT / "access").rglob("*.py")):
        calls = [
            node
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("compare_digest")
        ]
        if calls:
            found[str(path.relative_to(ROOT))] = len(calls)
    assert found == USES
