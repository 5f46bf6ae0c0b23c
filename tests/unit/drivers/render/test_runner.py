"""The runner with real files and real commands, over a catalog in memory."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from waypost.base.clock import SystemClock
from waypost.drivers.render.runner import Outcome, Runner, check_command
from waypost.drivers.render.settings import ExecSpec, Retry, RunnerSettings, TemplateSpec, Wait

sys.path.insert(0, str(Path(__file__).parent))
from fakes import MemorySource

FAST = Retry(attempts=0, backoff_s=0.02, max_backoff_s=0.05)
KEY = "kv.block(a)"


def runner(templates, source, *, shown=None, **options):
    options.setdefault("retry", FAST)
    options.setdefault("command_retry", FAST)
    return Runner(
        RunnerSettings(templates=tuple(templates), **options),
        source=source,
        clock=SystemClock(),
        env={"PATH": os.environ["PATH"]},
        rng=random.Random(1),
        show=(shown.append if shown is not None else lambda _: None),
    )


@asynccontextmanager
async def running(subject):
    task = asyncio.create_task(subject.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition, *, at_most_s=5.0):
    end = time.monotonic() + at_most_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        await asyncio.sleep(0.005)


def names(directory):
    return sorted(each.name for each in directory.iterdir())


def text_of(path):
    return path.read_text() if path.exists() else None


@pytest.fixture
def spec(tmp_path):
    def make(contents='v={{ key "a" }}', name="out", **options):
        return TemplateSpec(contents=contents, destination=str(tmp_path / name), **options)

    return make


async def test_renders_each_change_and_runs_the_command(tmp_path, spec):
    source = MemorySource({KEY: "1"})
    command = f"cat {tmp_path}/out >> {tmp_path}/log && echo . >> {tmp_path}/log"
    async with running(runner([spec(command=command)], source)):
        await until(lambda: text_of(tmp_path / "log") == "v=1.\n")
        source.set(KEY, "2")
        await until(lambda: text_of(tmp_path / "log") == "v=1.\nv=2.\n")
        source.set(KEY, "2")
        await asyncio.sleep(0.1)
        assert text_of(tmp_path / "log") == "v=1.\nv=2.\n"


async def test_once_runs_one_command_for_all_templates_after_all_files(tmp_path, spec):
    command = f"ls {tmp_path} >> {tmp_path}/log"
    templates = [spec("1", "a", command=command), spec("2", "b", command=command), spec("3", "c")]
    outcome = await runner(templates, MemorySource(), once=True).run()
    assert outcome == Outcome(0)
    assert text_of(tmp_path / "log") == "a\nb\nc\nlog\n"


async def test_once_ends_with_14_when_a_command_fails(tmp_path, spec):
    outcome = await runner([spec("x", command="exit 3")], MemorySource(), once=True).run()
    assert outcome.status == 14
    assert "exit status 3" in outcome.errors[0]
    assert text_of(tmp_path / "out") == "x"


async def test_a_bad_template_leaves_the_others_alone_and_heals(tmp_path, spec):
    bad = tmp_path / "bad.tmpl"
    bad.write_text("{{ nosuch }}")
    templates = [TemplateSpec(source=str(bad), destination=str(tmp_path / "b")), spec()]
    source = MemorySource({KEY: "1"})
    subject = runner(templates, source)
    async with running(subject):
        await until(lambda: text_of(tmp_path / "out") == "v=1")
        assert "nosuch" in subject.failures()[0]
        source.set(KEY, "2")
        await until(lambda: text_of(tmp_path / "out") == "v=2")
        bad.write_text("good")
        await until(lambda: text_of(tmp_path / "b") == "good")
        await until(lambda: subject.failures() == ())


async def test_a_failing_command_is_repeated_until_it_succeeds(tmp_path, spec):
    command = f"echo x >> {tmp_path}/log; test $(wc -l < {tmp_path}/log) -ge 3"
    subject = runner([spec("x", command=command)], MemorySource())
    async with running(subject) as task:
        await until(lambda: text_of(tmp_path / "log") == "x\nx\nx\n")
        await until(lambda: subject.failures() == ())
        await asyncio.sleep(0.15)
        assert text_of(tmp_path / "log") == "x\nx\nx\n"
        assert not task.done()


async def test_check_refuses_the_new_content_and_keeps_the_file(tmp_path, spec):
    source = MemorySource({KEY: "good"})
    subject = runner([spec(check_command="grep -q good %s")], source)
    async with running(subject):
        await until(lambda: text_of(tmp_path / "out") == "v=good")
        source.set(KEY, "evil")
        await until(lambda: subject.failures() != ())
        assert text_of(tmp_path / "out") == "v=good"
        assert names(tmp_path) == ["out"] or all(
            name == "out" or name.startswith(".out.") for name in names(tmp_path)
        )
        source.set(KEY, "good again")
        await until(lambda: text_of(tmp_path / "out") == "v=good again")
        await until(lambda: subject.failures() == ())


async def test_rollback_when_the_command_fails(tmp_path, spec):
    source = MemorySource({KEY: "good"})
    subject = runner([spec(command=f"grep -q good {tmp_path}/out", rollback=True)], source)
    async with running(subject):
        await until(lambda: text_of(tmp_path / "out") == "v=good")
        source.set(KEY, "evil")
        await until(lambda: any("rolled back" in text for text in subject.failures()))
        await until(lambda: text_of(tmp_path / "out") == "v=good")


async def test_a_command_that_hangs_is_killed_with_its_children(tmp_path, spec):
    command = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    began = time.monotonic()
    outcome = await runner(
        [spec("x", command=command, command_timeout_s=0.3)], MemorySource(), once=True
    ).run()
    assert outcome.status == 14
    assert "did not finish in 0.3s" in outcome.errors[0]
    assert time.monotonic() - began < 5
    pid = int((tmp_path / "pid").read_text())
    await until(lambda: not _runs(pid))


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


async def test_wait_gathers_changes(tmp_path, spec):
    source = MemorySource({KEY: "0"})
    command = f"cat {tmp_path}/out >> {tmp_path}/log; echo >> {tmp_path}/log"
    async with running(runner([spec(command=command)], source, wait=Wait(0.15, 2.0))):
        await until(lambda: text_of(tmp_path / "log") == "v=0\n")
        for number in range(5):
            source.set(KEY, str(number))
            await asyncio.sleep(0.03)
        await until(lambda: text_of(tmp_path / "log") == "v=0\nv=4\n")


async def test_the_source_may_go_away_for_a_while(tmp_path, spec):
    source = MemorySource({KEY: "1"})
    async with running(
        runner([spec()], source, retry=Retry(attempts=2, backoff_s=0.01, max_backoff_s=0.02))
    ) as task:
        await until(lambda: text_of(tmp_path / "out") == "v=1")
        source.down = True
        source.set(KEY, "2")
        await asyncio.sleep(0.3)
        assert text_of(tmp_path / "out") == "v=1"
        assert not task.done()
        source.down = False
        await until(lambda: text_of(tmp_path / "out") == "v=2")


async def test_once_gives_up_after_its_retries(spec):
    source = MemorySource()
    source.down = True
    outcome = await runner(
        [spec()], source, once=True, retry=Retry(attempts=2, backoff_s=0.01)
    ).run()
    assert outcome == Outcome(14, ("kv.block(a): connection refused",))
    assert source.asked == 3


async def test_dependencies_no_longer_used_are_forgotten(tmp_path, spec):
    source = MemorySource({KEY: "b", "kv.block(b)": "1", "kv.block(c)": "2"})
    async with running(runner([spec('{{ with key "a" }}{{ key . }}{{ end }}')], source)):
        await until(lambda: text_of(tmp_path / "out") == "1")
        source.set(KEY, "c")
        await until(lambda: text_of(tmp_path / "out") == "2")


async def test_mode_backup_and_directories(tmp_path, spec):
    first = spec("one", "d/e/out", perms=0o600)
    assert (await runner([first], MemorySource(), once=True).run()).status == 0
    out = tmp_path / "d/e/out"
    assert out.stat().st_mode & 0o777 == 0o600
    second = spec("two", "d/e/out", backup=True)
    assert (await runner([second], MemorySource(), once=True).run()).status == 0
    assert out.stat().st_mode & 0o777 == 0o600
    assert (text_of(out), text_of(tmp_path / "d/e/out.bak")) == ("two", "one")
    missing = spec("x", "no/out", create_dest_dirs=False)
    outcome = await runner([missing], MemorySource(), once=True).run()
    assert outcome.status == 14
    assert "parent directory is missing" in outcome.errors[0]


async def test_dry_prints_and_writes_nothing(tmp_path, spec):
    shown = []
    subject = runner(
        [spec("x", command=f"touch {tmp_path}/ran")],
        MemorySource(),
        once=True,
        dry=True,
        shown=shown,
    )
    assert (await subject.run()).status == 0
    assert shown == [f"> {tmp_path}/out\nx".encode()]
    assert names(tmp_path) == []


async def test_exec_starts_after_rendering_and_restarts_on_change(tmp_path, spec):
    source = MemorySource({KEY: "1"})
    child = ExecSpec(command=f"cat {tmp_path}/out >> {tmp_path}/log; exec sleep 60")
    async with running(runner([spec()], source, exec=child)):
        await until(lambda: text_of(tmp_path / "log") == "v=1")
        source.set(KEY, "2")
        await until(lambda: text_of(tmp_path / "log") == "v=1v=2")


async def test_exec_child_that_ends_ends_the_runner(spec):
    child = ExecSpec(command="sleep 0.1; exit 7")
    outcome = await runner([spec("x")], MemorySource(), exec=child).run()
    assert outcome.status == 7


async def test_file_dependency(tmp_path, spec):
    (tmp_path / "in").write_text("hello")
    template = spec(f'{{{{ file "{tmp_path}/in" }}}}')
    assert (await runner([template], MemorySource(), once=True).run()).status == 0
    assert text_of(tmp_path / "out") == "hello"
    outcome = await runner([spec('{{ file "nosuch" }}')], MemorySource(), once=True).run()
    assert outcome == Outcome(14, ("file(nosuch): stat nosuch: no such file or directory",))


def test_check_command_quotes_the_path():
    assert check_command("nginx -t -c %s 100%%", Path("/a b/c")) == "nginx -t -c '/a b/c' 100%"
