"""`waypost config`: kubeconfig files, as `kubectl config` shows and changes them."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waypost.base.errors import Malformed
from waypost.cli.agent_flags import CommandFailed
from waypost.cli.flags import Command, Group, S, Settings, UsageError, flag, repeated

if TYPE_CHECKING:
    from waypost.wire.kubeconfig import Cluster, Context, Kubeconfig, User

SUMMARY = "View and change kubeconfig files"


class MixedCommand(Command[S]):
    """A command whose flags may stand after its arguments as well, as kubectl's may."""

    def run(self, argv: Sequence[str]) -> int:
        """Put the flags first, then run as any command."""
        return super().run(flags_first(argv, self.settings))


def flags_first(argv: Sequence[str], settings: type[Settings]) -> list[str]:
    """Return `argv` with the flags before the arguments. What follows `--` stays arguments."""
    flags: list[str] = []
    arguments: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if word == "--":
            arguments += words
            break
        if len(word) < 2 or not word.startswith("-"):
            arguments.append(word)
            continue
        flags.append(word)
        spec = settings.declared.get(word.lstrip("-"))
        if spec is not None and not spec.is_boolean and words:
            flags.append(words.pop(0))
    return [*flags, "--", *arguments]


# -- which files -------------------------------------------------------------------------------------------------------


class FileFlags(Settings):
    """Flags of every `waypost config` command."""

    section = "File Options"

    kubeconfig: str = flag(
        "",
        "The kubeconfig file. By default those of KUBECONFIG (several, separated by colons, are merged), "
        "or ~/.kube/config.",
        value="file",
    )


class Files:
    """The kubeconfig files of a command: which are read, and which one a change goes into. Source: kubectl."""

    def __init__(self, explicit: str, environment: Mapping[str, str]) -> None:
        self._explicit = bool(explicit)
        if explicit:
            self.paths = [Path(explicit).absolute()]
        else:
            named = [one for one in environment.get("KUBECONFIG", "").split(":") if one]
            home = Path(environment.get("HOME", "/")) / ".kube" / "config"
            self.paths = [Path(one).absolute() for one in dict.fromkeys(named)] or [home]

    @property
    def new_entries(self) -> Path:
        """The file for what no file has yet: the first that exists, else the last one named."""
        return next((path for path in self.paths if path.exists()), self.paths[-1])

    @property
    def shown(self) -> str:
        """How messages name the files."""
        return str(self.new_entries)

    def load(self, *, must_exist: bool = False, resolve: bool = True) -> Kubeconfig:
        """Return all files as one, with absolute paths inside if `resolve`. Raises CommandFailed."""
        from waypost.wire.kubeconfig import merge

        if must_exist and self._explicit and not self.paths[0].exists():
            raise CommandFailed(f"error: {self.paths[0]}: no such file")
        return merge([read_file(path, resolve=resolve) for path in self.paths])

    def origin(self, kind: str, name: str) -> Path:
        """Return the file that an entry comes from, or the one for new entries."""
        for path in self.paths:
            if name in getattr(read_file(path), kind):
                return path
        return self.new_entries


def read_file(path: Path, *, resolve: bool = True) -> Kubeconfig:
    """Return a file's configuration, with absolute paths if `resolve`; empty if there is no file."""
    from waypost.wire.kubeconfig import Kubeconfig, absolute_paths, parse

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Kubeconfig()
    except OSError as exc:
        raise CommandFailed(
            f'error: error loading config file "{path}": {exc.strerror or exc}'
        ) from exc
    try:
        found = parse(data, name=str(path))
    except Malformed as exc:
        raise CommandFailed(f"error: {exc}") from exc
    return absolute_paths(found, folder=str(path.parent)) if resolve else found


def write_file(path: Path, config: Kubeconfig) -> None:
    """Write a file whole or not at all, mode 0600 if it is new. Raises Unavailable."""
    from waypost.access.pki.files import SECRET_MODE, FileWrite, write_all
    from waypost.wire.kubeconfig import relative_paths, to_yaml

    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else SECRET_MODE
    text = to_yaml(relative_paths(config, folder=str(path.parent)))
    write_all([FileWrite(path, text.encode(), mode)])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file as kubectl does: by `FILE.lock` beside it. Raises CommandFailed if somebody else holds it."""
    lock = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(lock, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError as exc:
        raise CommandFailed(
            f"error: {lock} is there: another program is changing the file, or was killed doing so; "
            "then remove it"
        ) from exc
    except OSError as exc:
        raise CommandFailed(f"error: {path}: {exc.strerror or exc}") from exc
    try:
        yield
    finally:
        with suppress(OSError):
            lock.unlink()


def _change(path: Path, **values: Any) -> None:
    """Put entries (None: take it out) and fields into one file; `values` are kind → name → entry, or a field."""
    import msgspec

    with _locked(path):
        config = read_file(path)
        changes: dict[str, Any] = {}
        for field, value in values.items():
            if isinstance(value, dict):
                merged = {**getattr(config, field), **value}
                changes[field] = {k: v for k, v in merged.items() if v is not None}
            else:
                changes[field] = value
        write_file(path, msgspec.structs.replace(config, **changes))


def _files(settings: FileFlags) -> Files:
    return Files(settings.kubeconfig, os.environ)


def _one(args: list[str]) -> str:
    if len(args) != 1:
        raise UsageError(f"error: Unexpected args: [{' '.join(args)}]")
    return args[0]


def _none(args: list[str]) -> None:
    if args:
        raise UsageError(f"error: unexpected arguments: [{' '.join(args)}]")


# -- looking -----------------------------------------------------------------------------------------------------------


class ViewFlags(FileFlags):
    """Flags of `waypost config view`."""

    section = Settings.section

    context: str = flag("", "With -minify: this context, not the current one.", value="name")
    flatten: bool = flag(
        False,
        "Put the content of files in place of their paths; for use elsewhere, so with all secrets.",
    )
    minify: bool = flag(False, "Only what the current context needs.")
    o: str = flag("yaml", "Output format: yaml, json, or jsonpath=TEMPLATE.", value="format")
    output: str = flag("", "The same as -o.", value="format")
    raw: bool = flag(False, "Show certificates, keys, tokens and passwords.")


def _view(settings: ViewFlags, args: list[str]) -> int:
    _none(args)
    from waypost.wire import kubeconfig

    # Paths appear as they are in the files, except where the files behind them are read.
    config = _files(settings).load(must_exist=True, resolve=settings.flatten)
    try:
        if settings.minify:
            config = kubeconfig.minify(config, context=settings.context)
        if settings.flatten:
            config = kubeconfig.flatten(config, lambda path: Path(path).read_bytes())
    except Malformed as exc:
        raise CommandFailed(f"error: {exc}") from exc
    if not settings.raw and not settings.flatten:  # a flattened file is for use, as with kubectl
        config = kubeconfig.redact(config)
    form = settings.output or settings.o
    if form == "yaml":
        print(kubeconfig.to_yaml(config), end="")
    elif form == "json":
        print(_json(kubeconfig.to_values(config)))
    elif form.startswith("jsonpath="):
        from waypost.cli.jsonpath import evaluate

        try:
            text = evaluate(form.removeprefix("jsonpath="), kubeconfig.to_values(config))
        except Malformed as exc:
            raise CommandFailed(f"error: {exc}") from exc
        print(text, end="")
    else:
        raise CommandFailed(
            f'error: unable to match a printer suitable for the output format "{form}", '
            "allowed formats are: json,jsonpath=,yaml"
        )
    return 0


def _json(values: dict[str, Any]) -> str:
    text = json.dumps(values, indent=4, ensure_ascii=False)
    for character in "<>&":  # Go's encoder writes them so, for HTML
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _current_context(settings: FileFlags, args: list[str]) -> int:
    _none(args)
    current = _files(settings).load(must_exist=True).current_context
    if not current:
        raise CommandFailed("error: current-context is not set")
    print(current)
    return 0


class GetContextsFlags(FileFlags):
    """Flags of `waypost config get-contexts`."""

    section = Settings.section

    no_headers: bool = flag(False, "Without the line of headings.")
    o: str = flag("", "Output format: name.", value="format")
    output: str = flag("", "The same as -o.", value="format")


def _get_contexts(settings: GetContextsFlags, args: list[str]) -> int:
    form = settings.output or settings.o
    if form not in ("", "name"):
        raise UsageError(
            f'error: output must be one of "" or "name": {form}',
        )
    config = _files(settings).load(must_exist=True)
    missing = [name for name in args if name not in config.contexts]
    names = [name for name in (args or config.contexts) if name in config.contexts]
    rows = [] if settings.no_headers else [("CURRENT", "NAME", "CLUSTER", "AUTHINFO", "NAMESPACE")]
    for name in sorted(names):
        one = config.contexts[name]
        mark = "*" if name == config.current_context else ""
        rows.append((mark, name, one.cluster, one.user, one.namespace))
    if form == "name":
        print("".join(f"{name}\n" for name in sorted(names)), end="")
    elif not missing or names:
        print(_columns(rows), end="")
    if missing:
        raise CommandFailed("\n".join(f"error: context {name} not found" for name in missing))
    return 0


def _columns(rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    widths = [max(6, *(len(row[i]) + 3 for row in rows)) for i in range(len(rows[0]) - 1)]
    return "".join(
        "".join(cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=True))
        + f"{row[-1]}\n"
        for row in rows
    )


def _get_clusters(settings: FileFlags, args: list[str]) -> int:
    _none(args)
    names = _files(settings).load(must_exist=True).clusters
    print("\n".join(["NAME", *names]))
    return 0


def _get_users(settings: FileFlags, args: list[str]) -> int:
    _none(args)
    names = _files(settings).load(must_exist=True).users
    print("\n".join(["NAME", *names]))
    return 0


# -- changing ----------------------------------------------------------------------------------------------------------


def _use_context(settings: FileFlags, args: list[str]) -> int:
    name = _one(args)
    files = _files(settings)
    if name not in files.load().contexts:
        raise CommandFailed(f'error: no context exists with the name: "{name}"')
    _change(files.new_entries, current_context=name)
    print(f'Switched to context "{name}".')
    return 0


class SetContextFlags(FileFlags):
    """Flags of `waypost config set-context`."""

    section = Settings.section

    cluster: str = flag("", "The context's cluster.", value="name")
    current: bool = flag(False, "Change the current context.")
    namespace: str = flag("", "The context's namespace.", value="name")
    user: str = flag("", "The context's user.", value="name")


def _given(settings: Settings, *names: str) -> dict[str, Any]:
    return {
        name: getattr(settings, name) for name in names if name.replace("_", "-") in settings.given
    }


def _set_context(settings: SetContextFlags, args: list[str]) -> int:
    import msgspec

    from waypost.wire.kubeconfig import Context

    files = _files(settings)
    config = files.load()
    if len(args) > 1:
        raise UsageError(f"error: Unexpected args: [{' '.join(args)}]")
    if not args and not settings.current:
        raise UsageError("error: you must specify a non-empty context name or --current")
    if args and settings.current:
        raise UsageError("error: you cannot specify both a context name and --current")
    name = config.current_context if settings.current else args[0]
    if not name:
        raise CommandFailed("error: no current context is set")
    there = name in config.contexts
    entry: Context = msgspec.structs.replace(
        config.contexts.get(name, Context()), **_given(settings, "cluster", "namespace", "user")
    )
    _change(files.origin("contexts", name), contexts={name: entry})
    print(f'Context "{name}" {"modified" if there else "created"}.')
    return 0


class SetClusterFlags(FileFlags):
    """Flags of `waypost config set-cluster`."""

    section = Settings.section

    certificate_authority: str = flag("", "File of the authority to trust.", value="file")
    embed_certs: bool = flag(False, "Put the file's content into the kubeconfig.")
    insecure_skip_tls_verify: bool = flag(False, "Trust whatever certificate the server has.")
    proxy_url: str = flag("", "Proxy to go through.", value="url")
    server: str = flag("", "URL of the server.", value="url")
    tls_server_name: str = flag("", "Name to expect in the server's certificate.", value="name")


def _set_cluster(settings: SetClusterFlags, args: list[str]) -> int:
    import msgspec

    from waypost.wire.kubeconfig import Cluster

    name = _one(args)
    if settings.certificate_authority and settings.insecure_skip_tls_verify:
        raise CommandFailed(
            "error: you cannot specify a certificate authority and insecure mode at the same time"
        )
    if settings.embed_certs and not settings.certificate_authority:
        raise CommandFailed("error: you must specify a --certificate-authority to embed")
    files = _files(settings)
    changes = _given(settings, "server", "tls_server_name", "insecure_skip_tls_verify", "proxy_url")
    if settings.insecure_skip_tls_verify:
        changes |= {"certificate_authority": "", "certificate_authority_data": ""}
    if "certificate-authority" in settings.given:
        path, data = _file_or_data(
            settings.certificate_authority,
            what="certificate-authority",
            embed=settings.embed_certs,
        )
        changes |= {"certificate_authority": path, "certificate_authority_data": data}
        changes["insecure_skip_tls_verify"] = False
    old = files.load().clusters.get(name, Cluster())
    entry: Cluster = msgspec.structs.replace(old, **changes)
    _change(files.origin("clusters", name), clusters={name: entry})
    print(f'Cluster "{name}" set.')
    return 0


def _file_or_data(text: str, *, what: str, embed: bool) -> tuple[str, str]:
    """Return the absolute path and no data, or no path and the file's content in base64."""
    from base64 import b64encode

    if not text:
        return "", ""
    path = Path(text).absolute()
    if not embed:
        return str(path), ""
    try:
        return "", b64encode(path.read_bytes()).decode()
    except OSError as exc:
        reason = (exc.strerror or str(exc)).lower()
        raise CommandFailed(
            f"error: could not stat {what} file {text}: stat {text}: {reason}"
        ) from exc


class SetCredentialsFlags(FileFlags):
    """Flags of `waypost config set-credentials`."""

    section = Settings.section

    client_certificate: str = flag("", "File of the client certificate.", value="file")
    client_key: str = flag("", "File of its key.", value="file")
    embed_certs: bool = flag(False, "Put the files' content into the kubeconfig.")
    exec_api_version: str = flag("", "API version of the credential plug-in.", value="version")
    exec_arg: tuple[str, ...] = repeated(str, "Argument of the plug-in.", name="exec-arg")
    exec_command: str = flag("", "Command of a credential plug-in.", value="command")
    exec_env: tuple[str, ...] = repeated(
        str, "NAME=value for the plug-in's environment.", name="exec-env"
    )
    password: str = flag("", "Password, with -username.")
    token: str = flag("", "Bearer token.")
    username: str = flag("", "User for basic authentication.")


def _set_credentials(settings: SetCredentialsFlags, args: list[str]) -> int:
    import msgspec

    from waypost.wire.kubeconfig import User

    name = _one(args)
    basic = bool(settings.username or settings.password)
    if settings.token and basic:
        raise CommandFailed(
            "error: you cannot specify more than one authentication method at the same time: "
            "--token, --username / --password"
        )
    files = _files(settings)
    old = files.load().users.get(name, User())
    changes = _given(settings, "token", "username", "password")
    for field in ("client_certificate", "client_key"):
        if field.replace("_", "-") in settings.given:
            path, data = _file_or_data(
                getattr(settings, field), what=field.replace("_", "-"), embed=settings.embed_certs
            )
            changes |= {field: path, f"{field}_data": data}
    if settings.token:
        changes |= {"username": "", "password": ""}
    elif basic:
        changes["token"] = ""
    if settings.exec_command or settings.exec_api_version or settings.exec_arg:
        changes["exec"] = _plugin(settings, old)
    entry: User = msgspec.structs.replace(old, **changes)
    _change(files.origin("users", name), users={name: entry})
    print(f'User "{name}" set.')
    return 0


def _plugin(settings: SetCredentialsFlags, old: User) -> dict[str, Any]:
    found = dict(old.exec or {})
    if settings.exec_command:
        found["command"] = settings.exec_command
    if settings.exec_api_version:
        found["apiVersion"] = settings.exec_api_version
    if settings.exec_arg:
        found["args"] = list(settings.exec_arg)
    environment = {one["name"]: one["value"] for one in found.get("env") or ()}
    for text in settings.exec_env:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise CommandFailed(f"error: invalid environment variable: {text}")
        environment[key] = value
    if environment:
        found["env"] = [{"name": k, "value": v} for k, v in environment.items()]
    return found


def _delete(settings: FileFlags, args: list[str], *, kind: str, noun: str) -> int:
    name = _one(args)
    files = _files(settings)
    path = files.origin(kind, name)
    if name not in getattr(read_file(path), kind):
        raise CommandFailed(f"error: cannot delete {noun} {name}, not in {files.shown}")
    _change(path, **{kind: {name: None}})
    print(f"deleted {noun} {name} from {path}")
    return 0


def _delete_context(settings: FileFlags, args: list[str]) -> int:
    return _delete(settings, args, kind="contexts", noun="context")


def _delete_cluster(settings: FileFlags, args: list[str]) -> int:
    return _delete(settings, args, kind="clusters", noun="cluster")


def _delete_user(settings: FileFlags, args: list[str]) -> int:
    return _delete(settings, args, kind="users", noun="user")


def _entry(
    summary: str, usage: str, about: str, *, settings: type[S], action: Any
) -> tuple[str, Command[S]]:
    return summary, MixedCommand(usage, about, settings=settings, action=action)


COMMAND = Group(
    "config <subcommand> [options] [args]",
    "Shows and changes kubeconfig files, the files that tell kubectl and waypost which server to ask and\n"
    "as whom. Output and rules are those of `kubectl config`.\n\n"
    "    $ waypost config view -kubeconfig=/var/lib/waypost/admin.conf\n"
    "    $ waypost config use-context kubernetes-admin@kubernetes",
    commands={
        "view": _entry(
            "Show the files, without secrets",
            "config view [options]",
            "Shows all files as one. Certificate and key data appear as DATA+OMITTED, tokens and passwords as\n"
            "REDACTED, also passwords inside URLs.",
            settings=ViewFlags,
            action=_view,
        ),
        "current-context": _entry(
            "Show the current context",
            "config current-context [options]",
            "Shows the current context's name; status 1 if none is set.",
            settings=FileFlags,
            action=_current_context,
        ),
        "get-contexts": _entry(
            "List the contexts",
            "config get-contexts [options] [NAME...]",
            "Lists all contexts, or those named.",
            settings=GetContextsFlags,
            action=_get_contexts,
        ),
        "get-clusters": _entry(
            "List the clusters",
            "config get-clusters [options]",
            "Lists the names of the clusters.",
            settings=FileFlags,
            action=_get_clusters,
        ),
        "get-users": _entry(
            "List the users",
            "config get-users [options]",
            "Lists the names of the users.",
            settings=FileFlags,
            action=_get_users,
        ),
        "use-context": _entry(
            "Make a context the current one",
            "config use-context [options] NAME",
            "Makes a context the current one.",
            settings=FileFlags,
            action=_use_context,
        ),
        "set-context": _entry(
            "Set a context's fields",
            "config set-context [options] <NAME | -current>",
            "Makes a context, or changes those of its fields that are given.",
            settings=SetContextFlags,
            action=_set_context,
        ),
        "set-cluster": _entry(
            "Set a cluster's fields",
            "config set-cluster [options] NAME",
            "Makes a cluster, or changes those of its fields that are given.",
            settings=SetClusterFlags,
            action=_set_cluster,
        ),
        "set-credentials": _entry(
            "Set a user's credentials",
            "config set-credentials [options] NAME",
            "Makes a user, or changes those of its fields that are given. A token replaces a password, and the\n"
            "other way round; a client certificate stays beside them.",
            settings=SetCredentialsFlags,
            action=_set_credentials,
        ),
        "delete-context": _entry(
            "Take out a context",
            "config delete-context [options] NAME",
            "Takes a context out of the file it is in.",
            settings=FileFlags,
            action=_delete_context,
        ),
        "delete-cluster": _entry(
            "Take out a cluster",
            "config delete-cluster [options] NAME",
            "Takes a cluster out of the file it is in.",
            settings=FileFlags,
            action=_delete_cluster,
        ),
        "delete-user": _entry(
            "Take out a user",
            "config delete-user [options] NAME",
            "Takes a user out of the file it is in.",
            settings=FileFlags,
            action=_delete_user,
        ),
    },
)


def run(argv: list[str]) -> int:
    """Run the command with what follows its name; return the exit status."""
    return COMMAND.run(argv)
