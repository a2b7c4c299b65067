"""The DNS forwarder: a small process that answers the guests' queries.

A package of its own, which imports nothing of the daemon: the process is to
stay small. `magsd.engine.network.dns` starts it, gives it its sockets and finds
it again; it drops to a user without rights and outlives that daemon.

A query is taken apart (`screen`) and asked anew of the host's resolvers
(`resolve`); nothing of a guest's bytes but the name and the type goes further.
An answer loses every address that a guest may not reach, so that internal
names stay internal; what the network's rules deny does not depend on it.
"""
