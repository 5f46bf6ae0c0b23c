"""What a large catalog costs one agent: memory, time to load, time of one update, time of an answer.

    ./run bench scale [NODES] [SERVICES]

The records are the ones that agents store; nothing is sent over a network.
"""

from __future__ import annotations

import gc
import resource
import sys
import time
from pathlib import Path
from statistics import median

from waypost.model.catalog import Check, Node, Service
from waypost.state.keys import put
from waypost.state.view import View
from waypost.store.engine import Batch, Event, KeyValue

NAMES = 50
"""So many services share all instances."""


def memory_mb() -> float:
    """Return the resident memory of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def rows(nodes: int, services: int) -> list[KeyValue]:
    """Return a store's rows: each node with its own check, each instance with one."""
    found = []
    for n in range(nodes):
        node = f"node-{n:05}"
        records = [
            Node(node=node, address=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", datacenter="dc1"),
            Check(node=node, check_id="serfHealth", name="Serf Health Status", status="passing"),
        ]
        for m in range(services):
            name = f"service-{(n * services + m) % NAMES:03}"
            records += [
                Service(node=node, id=f"{name}-{m}", name=name, port=8000 + m, tags=("http",)),
                Check(
                    node=node,
                    check_id=f"service:{name}-{m}",
                    name="http",
                    status="passing",
                    service_id=f"{name}-{m}",
                    service_name=name,
                ),
            ]
        found += [put(record) for record in records]
    return sorted(
        (KeyValue(one.key, one.value, n + 2, n + 2) for n, one in enumerate(found)),
        key=lambda row: row.key,
    )


def main() -> None:
    nodes, services = (int(word) for word in (*sys.argv[1:3], *("5000", "10")[len(sys.argv) - 1 :]))
    store = rows(nodes, services)
    size_mb = sum(len(row.key) + len(row.value) for row in store) / 2**20
    revision = max(row.modify_revision for row in store)
    gc.collect()
    before_mb = memory_mb()
    view = View()
    started = time.perf_counter()
    view.load(store, revision=revision)
    loaded_s = time.perf_counter() - started
    gc.collect()
    after_mb = memory_mb()
    changed = [row for row in store if row.key.startswith(b"c\0")][:2000]
    times = []
    for row in changed:
        revision += 1
        batch = Batch(
            revision, (Event("put", KeyValue(row.key, row.value, row.create_revision, revision)),)
        )
        started = time.perf_counter()
        view.apply(batch)
        times.append(time.perf_counter() - started)
    started = time.perf_counter()
    width = len(view.instances("service-000"))
    read_s = time.perf_counter() - started
    print(
        f"{nodes} nodes, {nodes * services} instances, {len(store)} records, {size_mb:.0f} MB in the store"
    )
    print(f"memory of the view   {after_mb - before_mb:.0f} MB")
    print(f"time to load it      {loaded_s:.2f} s")
    print(
        f"one update           {median(times) * 1e6:.1f} us median, {max(times) * 1e6:.0f} us worst"
    )
    print(f"a service of {width}   {read_s * 1e3:.2f} ms to read")


if __name__ == "__main__":
    main()
