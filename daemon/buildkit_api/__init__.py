"""BuildKit's API for clients that speak it (buildx, buildctl, ``docker build``): gRPC over HTTP/2, and the sessions through which a client offers files,
secrets and credentials. Imported by the daemon at the first request of that kind, never earlier.

    rpc.py         services and calls: what a handler gets, how it fails
    http2.py       one HTTP/2 connection over any asyncio transport, either role (h2 does the protocol)
    serving.py     a connection whose peer calls our services        calling.py    one whose peer's services we call
    tunnel.py      a connection inside a stream of messages
    sessions.py    the sessions that are open, by id                 session_*.py  a client for each service of a session
    messages/      protobuf messages

    control.py     Control: builds, progress, usage, workers         bridge.py      LLBBridge: a client that drives its build
    builds.py      one build: request, engine, results               build_jobs.py  the builds that run, by reference
    attributes.py  the frontend's attributes as a BuildRequest       client_*.py    contexts, outputs, caches of the client
    status_log.py  our events as statuses                            build_errors.py  failures with their places
    subrequests.py  lint, outline, targets                           graph_sources.py  the graphs that are a mere source
"""
