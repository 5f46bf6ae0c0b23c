"""Documents that are no resources: discovery, OpenAPI, version, health."""

from __future__ import annotations

import platform
from collections.abc import Callable

from waypost.access.authn.jws import PublicKey
from waypost.access.authn.service_account import discovery_document, key_set
from waypost.surfaces.http.message import Request, Response
from waypost.surfaces.kube import answers
from waypost.surfaces.kube.answers import Plain
from waypost.wire.kube import discovery
from waypost.wire.kube.negotiate import negotiate
from waypost.wire.kube.resources import ASKED, Catalog
from waypost.wire.kube.schema import openapi
from waypost.wire.kube.status import method_not_allowed, no_such_resource, not_acceptable
from waypost.wire.kube.values import JsonObject

KUBE_MAJOR, KUBE_MINOR = "1", "37"
"""Whose API this is; clients warn when theirs is more than one minor version away."""
_V2_PROTOBUF = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
_KEY_SET = "application/jwk-set+json"
ISSUER_PATHS = ("/.well-known/openid-configuration", "/openid/v1/jwks")
_HEALTH = ("/healthz", "/livez", "/readyz")


class DocumentRoutes:
    """Answers plain paths. Documents that never change are made once."""

    def __init__(
        self,
        catalog: Catalog,
        *,
        version: str,
        issuer: str = "",
        token_keys: Callable[[], tuple[PublicKey, ...]] = tuple,
        external_address: str = "",
        jwks_uri: str = "",
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """`issuer` and `token_keys` are of the server's own service-account tokens; none without keys.

        `external_address` is told to clients as the server's; `jwks_uri` empty: the keys are there.
        """
        self._external_address = external_address
        self._jwks_uri = jwks_uri or f"https://{external_address}{ISSUER_PATHS[1]}"
        self._catalog = catalog
        self._named = Catalog((*catalog, *ASKED))
        self._issuer = issuer
        self._token_keys = token_keys
        self._version = version
        self._is_ready = is_ready
        self._made: dict[str, Response] = {}

    def answer(self, request: Request) -> Response:
        """Answer a GET of a path. Raises ApiError (404, 405, 406), Plain 404."""
        path = request.path
        found = self._find(request, "/" + path.strip("/"))
        if found is None:
            raise Plain(404, "404 page not found\n")
        if request.method not in ("GET", "HEAD"):
            raise method_not_allowed()
        return found

    def _find(self, request: Request, path: str) -> Response | None:
        if path in ("/api", "/apis"):
            return self._groups(request, is_core=path == "/api")
        if path == "/version":
            return self._once("version", lambda: answers.document(self._version_info()))
        if path.startswith(_HEALTH):
            return self._health(request, path)
        if path.startswith("/openapi/"):
            return self._openapi(request, path)
        if path in ISSUER_PATHS:
            keys = self._token_keys()
            return self._issuer_document(request, path, keys) if keys else None
        return self._group(path)

    def _issuer_document(
        self, request: Request, path: str, keys: tuple[PublicKey, ...]
    ) -> Response:
        """Return what lets others verify service-account tokens. Source: OpenID Connect Discovery 1.0."""
        if path == ISSUER_PATHS[0]:
            return answers.document(
                discovery_document(issuer=self._issuer, jwks_uri=self._jwks_uri, keys=keys)
            )
        accept = request.headers.get("accept") or "*/*"
        if not any(one in accept for one in (_KEY_SET, "application/*", "*/*")):
            raise not_acceptable()
        return answers.document(key_set(keys), content_type=_KEY_SET)

    # -- discovery -----------------------------------------------------------------------------------------------------------

    def _groups(self, request: Request, *, is_core: bool) -> Response:
        accept = request.headers.get("accept") or ""
        wanted = negotiate(accept, converts=("APIGroupDiscoveryList",))
        if wanted.convert and wanted.version == "v2":
            return self._once(
                f"aggregated {is_core}",
                lambda: answers.document(
                    discovery.aggregated(core=is_core, catalog=self._named),
                    content_type=discovery.AGGREGATED,
                    vary_accept=True,
                ),
            )
        if is_core:
            plain = discovery.api_versions(
                server_address=self._external_address, catalog=self._named
            )
        else:
            plain = discovery.api_groups(catalog=self._named)
        return answers.document(plain, vary_accept=True)

    def _group(self, path: str) -> Response | None:
        parts = path.strip("/").split("/")
        found: JsonObject | None = None
        if parts[0] == "api" and len(parts) == 2:
            found = discovery.api_resources("", parts[1], catalog=self._named)
        elif parts[0] == "apis" and len(parts) == 2:
            found = discovery.api_group(parts[1], catalog=self._named)
        elif parts[0] == "apis" and len(parts) == 3:
            found = discovery.api_resources(parts[1], parts[2], catalog=self._named)
            if found is None and parts[1] in self._named.groups():
                raise no_such_resource()
        return None if found is None else answers.document(found)

    # -- OpenAPI -------------------------------------------------------------------------------------------------------------

    def _openapi(self, request: Request, path: str) -> Response | None:
        if path == "/openapi/v2":
            accept = request.headers.get("accept") or ""
            if "protobuf" in accept:
                return self._once("v2 protobuf", self._v2_protobuf)
            return self._once("v2", lambda: answers.document(self._v2()))
        if path == "/openapi/v3":
            return self._once(
                path,
                lambda: answers.document(
                    openapi.v3_index(catalog=self._catalog, version=self._version)
                ),
            )
        return self._v3(path)

    def _v3(self, path: str) -> Response | None:
        known = self._made.get(path)
        if known is not None:
            return known
        parts = path.removeprefix("/openapi/v3/").split("/")
        group, version = ("", parts[-1]) if parts[0] == "api" else (parts[-2], parts[-1])
        if len(parts) != (2 if parts[0] == "api" else 3) or parts[0] not in ("api", "apis"):
            return None
        found = openapi.v3_document(
            group, version, catalog=self._catalog, server_version=self._version
        )
        return None if found is None else self._once(path, lambda: answers.document(found))

    def _v2(self) -> JsonObject:
        return openapi.v2_document(catalog=self._catalog, server_version=self._version)

    def _v2_protobuf(self) -> Response:
        return Response(body=openapi.v2_protobuf(self._v2()), content_type=_V2_PROTOBUF)

    # -- version and health ------------------------------------------------------------------------------------------------------

    def _version_info(self) -> JsonObject:
        return {
            "major": KUBE_MAJOR,
            "minor": KUBE_MINOR,
            "gitVersion": f"v{KUBE_MAJOR}.{KUBE_MINOR}.0+waypost-{self._version}",
            "gitCommit": "",
            "gitTreeState": "",
            "buildDate": "1970-01-01T00:00:00Z",
            "goVersion": f"python{platform.python_version()}",
            "compiler": platform.python_implementation().lower(),
            "platform": f"{platform.system().lower()}/{platform.machine()}",
        }

    def _health(self, request: Request, path: str) -> Response | None:
        name, _, check = path.strip("/").partition("/")
        if "/" + name not in _HEALTH or check not in ("", "ping", "store"):
            return None
        is_good = check == "ping" or name == "livez" or self._is_ready()
        if "verbose" not in request.query and is_good:
            return answers.plain("ok")
        lines = ["[+]ping ok", "[+]store ok" if is_good else "[-]store failed"]
        lines.append(f"{name} check {'passed' if is_good else 'failed'}")
        return answers.plain("\n".join(lines) + "\n", http_status=200 if is_good else 500)

    def _once(self, key: str, make: Callable[[], Response]) -> Response:
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = make()
        return found
