"""BuildKit's API for clients that speak it (buildx, buildctl, ``docker build``): gRPC over HTTP/2, and the sessions through which a client offers files,
secrets and credentials. Imported by the daemon at the first request of that kind, never earlier.

    rpc.py         services and calls: what a handler gets, how it fails
    http2.py       one HTTP/2 connection over any asyncio transport, either role (h2 does the protocol)
    serving.py     a connection whose peer calls our services        calling.py    one whose peer's services we call
    tunnel.py      a connection inside a stream of messages
    sessions.py    the sessions that are open, by id                 session_*.py  a client for each service of a session
    messages/      protobuf messages
"""
