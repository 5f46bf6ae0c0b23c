"""The engine of a cluster."""

from waypost.store.etcd.auth import EtcdAuth
from waypost.store.etcd.engine import EtcdEngine
from waypost.store.etcd.gateway import Gateway
from waypost.store.etcd.members import Alarm, EndpointStatus, Member, Members
from waypost.store.etcd.tls import EtcdTls

__all__ = [
    "Alarm",
    "EndpointStatus",
    "EtcdAuth",
    "EtcdEngine",
    "EtcdTls",
    "Gateway",
    "Member",
    "Members",
]
