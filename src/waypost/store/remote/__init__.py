"""The engine of client agents: the servers' store over HTTPS, with failover."""

from waypost.store.remote.engine import RemoteEngine
from waypost.store.remote.servers import Servers
from waypost.store.remote.transport import HttpTransport, Transport

__all__ = ["HttpTransport", "RemoteEngine", "Servers", "Transport"]
