"""The life of a daemon process: open, listen, serve, reload on SIGHUP, end on SIGTERM. The only module with its signals.

Ending is graceful: no new requests, running work is told to stop and waited for, sockets go away, the store is closed. A second signal
ends at once; what that leaves, the next start clears.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Mapping
from typing import Final

from aiohttp import web

from .api_buildkit import FirstBytes
from .api_listeners import Listening, notify, open_all
from .api_log import set_up_log
from .api_server import LOG, Daemon, make_runner
from .daemon_options import DaemonOptions
from .engine import Engine
from .memory import give_back, limit_allocator, settle
from .settings import Settings

_TIDY_SECONDS: Final = 15
_BUSY_LOOKS: Final = 4
"""A daemon that is never idle is tidied, too, but less often."""


async def serve(
    engine: Engine,
    options: DaemonOptions,
    *,
    variables: Mapping[str, str],
    reload: Callable[[], tuple[Settings, DaemonOptions]],
) -> None:
    """Serve until SIGTERM or SIGINT. ``reload`` reads the configuration again. Raises CannotListen."""
    limit_allocator()
    daemon = Daemon(engine, debug=options.log_level == "debug")
    runner = make_runner(daemon)
    await runner.setup()
    listening, notices = open_all(options, variables)
    _on_signals(daemon, options, variables=variables, reload=reload)
    servers: list[asyncio.Server] = []
    try:
        for each in listening:
            each.socket.setblocking(False)
            servers.append(await _listen(daemon, runner, each))
        for notice in notices:
            LOG.warning(notice)
        # Before there are many threads, so that the first build needn't wait for it.
        await asyncio.to_thread(engine.executor.start)
        LOG.info("ready", extra={"addresses": ",".join(each.address for each in listening), "root": engine.store.root})
        notify(variables, f"READY=1\nMAINPID={os.getpid()}")
        tidying = asyncio.create_task(_tidy(daemon))
        await daemon.stopping.wait()
        tidying.cancel()
        LOG.info("stopping", extra={"running": daemon.work.running})
        notify(variables, "STOPPING=1")
        for server in servers:
            server.close()
        await _end(daemon, options)
    finally:
        daemon.buildkit.close()
        await runner.cleanup()
        for each in listening:
            each.close()
        # In a thread: work that ends may still have to ask the loop for something (to close the sockets of an agent, say).
        await asyncio.to_thread(daemon.work.close)


async def _listen(daemon: Daemon, runner: web.AppRunner, listening: Listening) -> asyncio.Server:
    """Serve one socket: HTTP/1.1 by the runner, HTTP/2 by what BuildKit's clients call."""
    http1 = runner.server
    assert http1 is not None  # after its setup
    return await asyncio.get_running_loop().create_server(
        lambda: FirstBytes(http1=http1, http2=daemon.buildkit.connection),
        sock=listening.socket,
        ssl=listening.tls,
        backlog=256,
    )


async def _tidy(daemon: Daemon) -> None:
    """Give memory back after work, preferably when nothing runs."""
    settle()
    seen, looks = 0, 0
    while True:
        await asyncio.sleep(_TIDY_SECONDS)
        looks += 1
        if daemon.work.ended != seen and (not daemon.work.running or looks >= _BUSY_LOOKS):
            await daemon.work.call(give_back, daemon.engine.store.database)
            if not seen:
                settle()  # now with the modules that only work loads
            seen, looks = daemon.work.ended, 0


async def _end(daemon: Daemon, options: DaemonOptions) -> None:
    """Tell running work to end, and wait for it within its time."""
    daemon.events.close()
    daemon.work.cancel_all()
    for _ in range(options.shutdown_seconds * 10):
        if not daemon.work.running:
            return
        await asyncio.sleep(0.1)
    LOG.warning("work did not end in time", extra={"running": daemon.work.running})


def _on_signals(
    daemon: Daemon,
    options: DaemonOptions,
    *,
    variables: Mapping[str, str],
    reload: Callable[[], tuple[Settings, DaemonOptions]],
) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if daemon.stopping.is_set():
            os._exit(130)
        daemon.stopping.set()

    def again() -> None:
        notify(variables, "RELOADING=1")
        try:
            settings, changed = reload()
        except Exception as error:  # whatever is wrong with the file, the daemon goes on with what it has
            LOG.error("the configuration can't be reloaded", extra={"error": str(error)})
        else:
            daemon.engine.reload(settings)
            daemon.debug = changed.log_level == "debug"
            set_up_log(level=changed.log_level, form=changed.log_format)
            fixed = [
                name
                for name in ("hosts", "group", "mode", "data_root")
                if getattr(changed, name) != getattr(options, name)
            ]
            if fixed:
                LOG.warning("some settings need a restart", extra={"settings": ",".join(fixed)})
            daemon.events.report("daemon", "reload", daemon.id, name=os.uname().nodename)
            LOG.info("the configuration was reloaded")
        notify(variables, "READY=1")

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    loop.add_signal_handler(signal.SIGHUP, again)
