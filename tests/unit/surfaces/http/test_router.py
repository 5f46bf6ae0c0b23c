from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from waypost.base.errors import Forbidden
from waypost.surfaces.http.message import Head, Headers, Peer, Request, Response, text_response
from waypost.surfaces.http.router import ANY, BodyLimit, Route, Router, clean_path


def ask(router: Router, method: str, target: str) -> Response:
    head = Head(method=method, target=target.encode(), headers=Headers())
    request = Request(head, body=b"", peer=Peer(listener="t"), arrived_s=0.0)
    answer = router.answer(request)
    assert isinstance(answer, Response)
    return answer


def seen(name: str):
    return lambda request: text_response(200, f"{name}:{request.method}:{request.rest}")


def consul(**more) -> Router:
    return Router(
        [
            Route("/v1/agent/self", {"GET": seen("self")}),
            Route("/v1/kv/", dict.fromkeys(("GET", "PUT", "DELETE"), seen("kv")), is_prefix=True),
            Route("/v1/query/", {ANY: seen("query")}, is_prefix=True),
            Route("/v1/agent/service/deregister/", {"PUT": seen("out")}, is_prefix=True),
            Route("/v1/catalog/nodes", {"GET": seen("nodes")}),
            Route("/v1/query", {"GET": seen("queries"), "POST": seen("queries")}),
            Route("/ui/", {"GET": seen("ui")}, is_prefix=True),
        ],
        **more,
    )


@pytest.mark.parametrize(
    ("method", "target", "status", "body"),
    [
        ("GET", "/v1/agent/self", 200, "self:GET:"),
        ("GET", "/v1/agent/self?pretty", 200, "self:GET:"),
        ("PUT", "/v1/kv/a/b", 200, "kv:PUT:a/b"),
        ("GET", "/v1/kv/a%2Fb%20c", 200, "kv:GET:a/b c"),
        ("GET", "/v1/kv/", 200, "kv:GET:"),
        ("GET", "/v1/kv/a/", 200, "kv:GET:a/"),
        ("GET", "/v1/kv/.hidden", 200, "kv:GET:.hidden"),
        ("PUT", "/v1/agent/service/deregister/web:1/x", 200, "out:PUT:web:1/x"),
        ("DELETE", "/v1/query/1-2", 200, "query:DELETE:1-2"),
        ("OPTIONS", "/v1/query/1-2", 200, "query:OPTIONS:1-2"),
        ("POST", "/v1/query", 200, "queries:POST:"),
        ("GET", "/v1/nope", 404, ""),
        ("GET", "/v1/agent/self/", 404, ""),
        ("GET", "/v1/kv/a%0Ab", 400, ""),
        ("GET", "/v1/kv/a%zz", 400, ""),
        ("GET", "/v1/kv/%ff", 400, ""),
        ("CONNECT", "host:443", 400, ""),
        ("OPTIONS", "*", 200, ""),
        ("GET", "*", 400, ""),
        ("GET", "/v1/catalog/nodes?%zz", 500, ""),
        ("POST", "/v1/agent/self", 405, "method POST not allowed"),
        ("HEAD", "/v1/agent/self", 405, "method HEAD not allowed"),
    ],
)
def test_answers(method: str, target: str, status: int, body: str) -> None:
    answer = ask(consul(), method, target)
    assert answer.status == status
    assert answer.body.decode() == body


def test_allow() -> None:
    assert ask(consul(), "OPTIONS", "/v1/kv/foo") == Response(
        headers=(("Allow", "OPTIONS,GET,PUT,DELETE"),)
    )
    wrong = ask(consul(), "POST", "/v1/agent/self")
    assert wrong.headers == (("Allow", "OPTIONS,GET"),)
    assert wrong.content_type == "text/plain; charset=utf-8"
    assert wrong.vary


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/v1//agent/self", "/v1/agent/self"),
        ("/v1/agent/../agent/self?a=b", "/v1/agent/self?a=b"),
        ("/v1/kv//lead", "/v1/kv/lead"),
        ("/v1/kv/a%2F%2Fb%20c", "/v1/kv/a/b%20c"),
        ("/v1/kv/a//", "/v1/kv/a/"),
        ("/v1/kv", "/v1/kv/"),
        ("/v1/kv?recurse", "/v1/kv/?recurse"),
        ("/ui", "/ui/"),
        ("//evil.example/x", "/evil.example/x"),
        ("/..", "/"),
    ],
)
def test_redirects(target: str, location: str) -> None:
    answer = ask(consul(), "GET", target)
    assert answer.status == 301
    assert answer.headers == (("Location", location),)
    assert not answer.vary
    assert answer.content_type == "text/html; charset=utf-8"
    assert answer.body.decode() == f'<a href="{location}">Moved Permanently</a>.\n\n'
    put = ask(consul(), "PUT", target)
    assert (put.status, put.body, put.content_type) == (301, b"", "")


def test_redirect_body_is_escaped() -> None:
    answer = ask(consul(), "GET", '/v1//x?"><script>&a')
    assert b"<script>" not in answer.body
    assert b'"><' not in answer.body.replace(b'">Moved', b"")


def test_exact_wins_over_the_slash_redirect() -> None:
    assert ask(consul(), "GET", "/v1/query").status == 200


def test_longest_prefix_wins() -> None:
    router = Router(
        [
            Route("/a/", {"GET": seen("a")}, is_prefix=True),
            Route("/a/b/", {"GET": seen("ab")}, is_prefix=True),
        ]
    )
    assert ask(router, "GET", "/a/b/c/d").body == b"ab:GET:c/d"
    assert ask(router, "GET", "/a/c/d").body == b"a:GET:c/d"


def test_blocked_not_found_limit_and_error_form() -> None:
    limit = BodyLimit(7)

    def fancy(request: Request, error: Exception) -> Response:
        return text_response(418, f"fancy {error}")

    router = Router(
        [
            Route("/a", {"GET": seen("a")}, limit=limit, on_error=fancy),
            Route("/b", {"GET": seen("b")}),
        ],
        blocked=("/b",),
        not_found=lambda _request: text_response(404, "nothing here"),
    )
    assert ask(router, "GET", "/b").status == 403
    assert ask(router, "GET", "/b").body == b"Endpoint is blocked by agent configuration"
    assert ask(router, "GET", "/c").body == b"nothing here"

    def request(target: bytes) -> Request:
        head = Head(method="GET", target=target, headers=Headers())
        return Request(head, body=b"", peer=Peer(listener="t"), arrived_s=0.0)

    assert router.limit(request(b"/a").head) is limit
    assert router.limit(request(b"/c").head) == BodyLimit()
    assert router.failed(request(b"/a"), Forbidden("no")).status == 418
    assert router.failed(request(b"/b"), Forbidden("no")).status == 403


@pytest.mark.parametrize(
    "routes",
    [
        [Route("a", {})],
        [Route("/a", {}, is_prefix=True)],
        [Route("/a", {}), Route("/a", {})],
    ],
)
def test_bad_tables_are_refused(routes: list[Route]) -> None:
    with pytest.raises(ValueError, match="route"):
        Router(routes)


@given(st.text(alphabet="/.a", max_size=12).map(lambda s: "/" + s))
def test_clean_path_is_clean(path: str) -> None:
    clean = clean_path(path)
    assert clean_path(clean) == clean
    assert clean.startswith("/")
    pieces = clean.strip("/").split("/")
    assert clean == "/" or all(p not in ("", ".", "..") for p in pieces)
    assert clean.endswith("/") == (path.endswith("/") or clean == "/")
