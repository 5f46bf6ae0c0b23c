"""`waypost auth`: who am I, may I, why may somebody do that, who can, what looks wrong.

Exit status: 0 allowed, 1 refused, 2 not known or an error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from waypost.base.errors import WaypostError
from waypost.cli.agent_flags import AgentFlags, CommandFailed, connect, no_arguments, worded
from waypost.cli.flags import Command, Group, S, Settings, UsageError, flag, repeated
from waypost.cli.output import print_json, table

SUMMARY = "Ask about access control: who am I, may I, why, who can"
EXIT_REFUSED = 1
EXIT_ERROR = 2
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_PREFIX = "/v1/waypost/auth/"


class AskCommand(Command[S]):
    """A command with the exit status 2 for errors, so that 1 always means: refused. Flags may stand anywhere."""

    def run(self, argv: Sequence[str]) -> int:
        """Run, with the flags first."""
        from waypost.cli.config import flags_first

        try:
            return super().run(flags_first(argv, self.settings))
        except UsageError as exc:
            print(exc, exc.usage.rstrip("\n"), sep="\n", file=sys.stderr)
        except WaypostError as exc:
            print(exc, file=sys.stderr)
        return EXIT_ERROR


class OutputFlags(AgentFlags):
    """Flags of every question."""

    section = Settings.section

    o: str = flag("", "Output format: json.", value="format")


class PolicyFlags(OutputFlags):
    """Flags of questions that can be answered without an agent."""

    section = Settings.section

    data_dir: str = flag(
        "",
        "Read the policy from the data directory of an agent that does not run. -kubeconfig is then whom explain is about.",
        value="dir",
    )


class WhatFlags(PolicyFlags):
    """Flags that say what is asked."""

    section = Settings.section

    n: str = flag("", "Namespace; by default none, as for cluster-wide things.", value="namespace")
    namespace: str = flag("", "The same as -n.", value="namespace")
    name: str = flag("", "Name of the one thing that is asked for.", value="name")
    group: str = flag("", "API group of the resource, where its name does not tell.", value="group")


class SubjectFlags(WhatFlags):
    """Flags that say about whom."""

    section = Settings.section

    as_user: str = flag("", "Ask about this user.", name="as", value="user")
    as_group: tuple[str, ...] = repeated(
        str, "Ask about a member of this group; may be given several times.", value="group"
    )
    subject_token: str = flag("", "Ask about whoever shows this token.", value="token")
    subject_certificate: str = flag(
        "", "Ask about whoever shows this certificate (PEM).", value="file"
    )
    audit_id: str = flag("", "Ask about a past request: the Audit-Id of its answer.", value="id")


class CanFlags(SubjectFlags):
    """Flags of `waypost auth can-i`."""

    section = Settings.section

    list: bool = flag(False, "Print everything that you may do in the namespace.")
    q: bool = flag(False, "Print nothing; the exit status is the answer.")


def question(settings: WhatFlags, args: list[str]) -> dict[str, Any]:
    """Return the question of a command line: VERB RESOURCE [NAME], VERB RESOURCE/NAME, VERB /PATH or METHOD /URL."""
    values: dict[str, Any] = {}
    if settings.n or settings.namespace:
        values["namespace"] = settings.namespace or settings.n
    if settings.name:
        values["name"] = settings.name
    if "group" in settings.given:
        values["group"] = settings.group
    if not args:
        return values
    if not 2 <= len(args) <= 3:
        raise UsageError("give a verb and a resource, a verb and a path, or a method and a URL")
    verb, what = args[0], args[1]
    if verb in _METHODS:
        return values | {"method": verb, "url": what}
    if what.startswith("/"):
        return values | {"verb": verb, "path": what}
    resource, slash, name = what.partition("/")
    values |= {"verb": verb, "resource": resource}
    if slash and name:
        values["name"] = name
    if len(args) == 3:
        values["name"] = args[2]
    return values


def _subject(settings: SubjectFlags) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if settings.as_user:
        values["user"] = settings.as_user
    if settings.as_group:
        values["groups"] = list(settings.as_group)
    if settings.subject_token:
        values["token"] = settings.subject_token
    if settings.subject_certificate:
        path = settings.subject_certificate
        try:
            values["certificate"] = Path(path).read_text(encoding="ascii")
        except (OSError, UnicodeDecodeError) as exc:
            raise CommandFailed(f"{path}: {exc}") from exc
    if settings.audit_id:
        values["audit_id"] = settings.audit_id
    return values


def _is_json(settings: OutputFlags) -> bool:
    if settings.o not in ("", "json"):
        raise UsageError(f"unknown output format: {settings.o}")
    return settings.o == "json"


def _ask(
    settings: AgentFlags,
    path: str,
    body: dict[str, Any] | None = None,
    query: tuple[tuple[str, str], ...] = (),
) -> dict[str, Any]:
    if isinstance(settings, PolicyFlags) and settings.data_dir and path != "whoami":
        from waypost.cli.auth_offline import ask_offline, subject_of

        if path == "explain" and settings.kubeconfig:
            body = (body or {}) | subject_of(settings.kubeconfig, context=settings.context)
        return ask_offline(Path(settings.data_dir), path, body)
    from waypost.client.call import Call, json_of
    from waypost.client.errors import UnexpectedResponse

    call = Call(
        method="GET" if body is None else "POST",
        path=_PREFIX + path,
        decode=json_of(dict[str, Any]),
        query=query,
        body=None if body is None else json.dumps(body).encode(),
        in_datacenter=False,
    )
    with worded("Error asking the agent"), connect(settings) as client:
        try:
            return client.do(call)
        except UnexpectedResponse as exc:
            if exc.status == 401:
                raise CommandFailed(
                    "401 Unauthorized: the agent does not accept this credential. The reason is told to operators "
                    "only: ask at its unix socket with -subject-token or -subject-certificate, or see its log"
                ) from exc
            raise


def _explain(settings: SubjectFlags, args: list[str]) -> int:
    as_json = _is_json(settings)
    found = _ask(settings, "explain", question(settings, args) | _subject(settings))
    status = int(found["exitCode"])
    if as_json:
        print_json(found)
    else:
        print(found["text"], end="")
    return status


def _can_i(settings: CanFlags, args: list[str]) -> int:
    as_json = _is_json(settings)
    if settings.list:
        no_arguments(args)
        return _list_rules(settings, as_json=as_json)
    if not args:
        raise UsageError("give a verb and a resource, a verb and a path, or a method and a URL")
    found = _ask(settings, "explain", question(settings, args) | _subject(settings))
    status = int(found["exitCode"])
    if as_json:
        print_json({"allowed": status == 0, "text": found["text"]})
    elif not settings.q:
        explanation = found["explanation"] or {}
        reason = explanation.get("reason") or ""
        print(("yes", "no", "unknown")[status] + (f" - {reason}" if reason else ""))
    return status


def _list_rules(settings: CanFlags, *, as_json: bool) -> int:
    namespace = settings.namespace or settings.n or "default"
    rules = _ask(settings, "whoami", query=(("namespace", namespace),))["rules"]
    if as_json:
        print_json(rules)
        return 0
    rows = [("RESOURCES", "NON-RESOURCE URLS", "NAMES", "VERBS")]
    rows += [
        (
            " ".join(
                f"{resource}.{group}" if group else resource
                for group in rule.get("apiGroups", ())
                for resource in rule.get("resources", ())
            ),
            "",
            " ".join(rule.get("resourceNames", ())),
            " ".join(rule["verbs"]),
        )
        for rule in rules["resourceRules"]
    ]
    rows += [
        ("", " ".join(rule["nonResourceURLs"]), "", " ".join(rule["verbs"]))
        for rule in rules["nonResourceRules"]
    ]
    print(table(rows))
    if rules["incomplete"]:
        print(f"incomplete: {rules.get('evaluationError', '')}", file=sys.stderr)
    return 0


def _whoami(settings: OutputFlags, args: list[str]) -> int:
    no_arguments(args)
    found = _ask(settings, "whoami")
    if _is_json(settings):
        print_json(found)
        return 0
    rows = [("user", found["user"]), ("origin", found["origin"])]
    rows += [("group", group) for group in found["groups"]]
    rows += [
        (key, value) for key, value in (("uid", found["uid"]), ("from", found["address"])) if value
    ]
    rows += [(f"extra {key}", " ".join(values)) for key, values in sorted(found["extra"].items())]
    if found["expires"]:
        import datetime as dt

        moment = dt.datetime.fromtimestamp(found["expires"], dt.UTC)
        rows.append(("expires", moment.strftime("%Y-%m-%dT%H:%M:%SZ")))
    rows.append(("asked", " ".join(found["authorizers"])))
    print(table(rows))
    return 0


def _who_can(settings: WhatFlags, args: list[str]) -> int:
    as_json = _is_json(settings)
    if not args:
        raise UsageError("give a verb and a resource, a verb and a path, or a method and a URL")
    found = _ask(settings, "who-can", question(settings, args))
    if as_json:
        print_json(found)
    else:
        print(f"Who can {found['action']}:\n")
        rows = [("SUBJECT", "BINDING", "ROLE", "RULE")]
        print(table([*rows, *(tuple(row) for row in found["rows"])]))
        print("\nMembers of system:masters may do everything besides.")
        others = ", ".join(found["others"])
        if others:
            print(f"Not looked at: what {others} allow.")
    return 0 if found["holders"] else EXIT_REFUSED


def _lint(settings: PolicyFlags, args: list[str]) -> int:
    no_arguments(args)
    findings = _ask(settings, "lint")["findings"]
    if _is_json(settings):
        print_json(findings)
    elif not findings:
        print("Nothing to say about this policy.")
    else:
        rows = [
            (
                one["severity"],
                f"{one['kind']} {one['namespace'] + '/' if one['namespace'] else ''}{one['name']}",
                f"{one['text']} ({one['code']})",
            )
            for one in findings
        ]
        print(table(rows))
    return EXIT_REFUSED if any(one["severity"] == "error" for one in findings) else 0


def _command(
    usage: str, about: str, settings: type[S], action: Callable[[S, list[str]], int]
) -> AskCommand[S]:
    return AskCommand(usage, about, settings=settings, action=action)


_ASKS = "VERB RESOURCE[/NAME] | VERB /PATH | METHOD /URL"

COMMAND = Group(
    "auth <subcommand> [options]",
    "Answers questions about access control from the running agent. Exit status: 0 allowed, 1 refused,\n"
    "2 not known, or an error.\n\n"
    "    waypost auth explain -kubeconfig admin.conf delete nodes\n"
    "    waypost auth explain -as web-team PUT /v1/kv/app/color\n"
    "    waypost auth who-can update services/web",
    commands={
        "whoami": (
            "Show who you are, and which credential says so",
            _command("auth whoami [options]", "", OutputFlags, _whoami),
        ),
        "can-i": (
            "Answer yes or no",
            _command(f"auth can-i [options] {_ASKS}", "", CanFlags, _can_i),
        ),
        "explain": (
            "Show the way from credential to rule, or what is missing",
            _command(
                f"auth explain [options] [{_ASKS}]",
                "Without a question: everything (*). About the caller (-kubeconfig, -token, -client-cert …), or about\n"
                "somebody else, which needs the right to create subjectaccessreviews.",
                SubjectFlags,
                _explain,
            ),
        ),
        "who-can": (
            "List who may do something, and by which binding",
            _command(f"auth who-can [options] {_ASKS}", "", WhatFlags, _who_can),
        ),
        "lint": (
            "Show what looks wrong in roles and bindings",
            _command("auth lint [options]", "", PolicyFlags, _lint),
        ),
    },
)


def run(argv: Sequence[str]) -> int:
    """Run `waypost auth`."""
    return COMMAND.run(argv)
