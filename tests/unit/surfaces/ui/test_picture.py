"""What the page is told: whose checks are whose, who is a server, and no more output than a page can show."""

from waypost.model.catalog import Check, Node, Service
from waypost.state.keys import put
from waypost.state.view import View
from waypost.store.engine import KeyValue
from waypost.surfaces.ui.picture import LeaderPicture, draw

ALONE = LeaderPicture(is_known=True, address="")


def picture(*records, leader=ALONE):
    view = View()
    operations = [put(record) for record in records]
    view.load([KeyValue(one.key, one.value, 2, 2) for one in operations], revision=2)
    return draw(view, node="a", datacenter="dc1", version="1", leader=leader)


RECORDS = (
    Node(node="a", address="192.0.2.1", meta={"rack": "1"}),
    Node(node="b", address="192.0.2.2"),
    Service(node="a", id="consul", name="consul", port=8300),
    Service(node="b", id="web-1", name="web", port=80, tags=("http",)),
    Check(node="b", check_id="serfHealth", name="Serf Health Status", status="passing"),
    Check(
        node="b", check_id="c", name="C", status="critical", service_id="web-1",
        service_name="web", output="x" * 1000,
    ),
)  # fmt: skip


def test_a_node_has_its_own_checks_and_an_instance_both():
    shown = picture(*RECORDS)
    a, b = shown.nodes
    assert (a.is_server, a.meta, a.checks) == (True, {"rack": "1"}, ())
    assert (b.is_server, b.status, [one.id for one in b.checks]) == (
        False,
        "passing",
        ["serfHealth"],
    )
    (web,) = [one for one in shown.services if one.name == "web"]
    assert web.counts["critical"] == 1
    assert {one.id for one in web.instances[0].checks} == {"serfHealth", "c"}
    assert max(len(one.output) for one in web.instances[0].checks) == 500


def test_it_says_who_leads():
    leader = LeaderPicture(is_known=False, address="")
    assert picture(leader=leader).leader == leader
