"""How long one pass over the nginx template takes: 100 services with 10 instances each.

    python benchmarks/bench_templates.py

Parsing is done once; a pass looks every service up, walks all instances and gives about 1400 lines. There is no
rival to compare with: consul-template measures no pass of its own.
"""

from __future__ import annotations

import statistics
import time

from waypost.base.clock import SystemClock
from waypost.drivers.render import dependency as ask
from waypost.drivers.render import records
from waypost.drivers.render.evaluate import Renderer
from waypost.model.catalog import Check, Node, Service

SERVICES = 100
INSTANCES = 10
ROUNDS = 100

TEMPLATE = """\
http {
{{- range services }}
  {{- if in .Tags "http" }}
  {{- $name := .Name }}
  {{- with service $name }}
  upstream {{ $name }} {
    zone {{ $name }} 64k;
    least_conn;
    {{- range . }}
    server {{ .Address }}:{{ .Port }} max_fails=3 fail_timeout=60 weight=1;
    {{- end }}
  }
  {{- end }}
  {{- end }}
{{- end }}
{{- range services }}
  {{- if in .Tags "http" }}
  {{- $name := .Name }}
  server {
    listen 80;
    server_name {{ printf "%s.example.com" $name }};
    location / {
      {{- if service $name }}
      proxy_pass http://{{ $name }};
      {{- else }}
      return 503;
      {{- end }}
    }
  }
  {{- end }}
{{- end }}
}
"""


def world():
    nodes = [Node(node=f"n{i}", address=f"10.0.0.{i + 1}") for i in range(INSTANCES)]
    names = [f"service-{number:03d}" for number in range(SERVICES)]
    known = {ask.services(""): records.snippets(dict.fromkeys(names, ("http", "v1")))}
    for place, name in enumerate(names):
        known[ask.service(name)] = tuple(
            records.health_service(
                node,
                Service(
                    node=node.node,
                    id=f"{node.node}:{name}",
                    name=name,
                    port=20000 + place,
                    tags=("http", "v1"),
                    meta={"version": "1"},
                ),
                [Check(node=node.node, check_id="serfHealth", name="alive", status="passing")],
            )
            for node in nodes
        )
    return known


def timed(action):
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        action()
        times.append((time.perf_counter() - begin) * 1000)
    return f"median {statistics.median(times):.2f} ms, p99 {sorted(times)[int(ROUNDS * 0.99) - 1]:.2f} ms"


def main():
    known = world()
    renderer = Renderer.parse(TEMPLATE)
    clock = SystemClock()
    text = renderer.evaluate(known, clock=clock, env={}).text
    lines = text.count("\n")
    print(f"{SERVICES} services x {INSTANCES} instances, {lines} lines, {len(text)} characters")
    print("parse and compile:", timed(lambda: Renderer.parse(TEMPLATE)))
    print("one pass:         ", timed(lambda: renderer.evaluate(known, clock=clock, env={})))


if __name__ == "__main__":
    main()
