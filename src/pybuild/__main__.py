"""The ``pybuild`` command. Answers ``--version`` itself and hands everything else to ``pybuild.cli``."""

from __future__ import annotations

import gc
import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run the command line ``argv`` (default: the process's) and return its exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"] or arguments == ["-v"]:
        from pybuild import __version__

        print(f"pybuild {__version__}")
        return 0
    from pybuild.cli.main import run

    return run(arguments)


def program() -> None:
    """Run as a program: the process ends here, without taking the interpreter apart, which would cost more than a cached build's steps."""
    _speak_utf8()
    # What is imported stays, and little of what a command makes is a cycle: looking for garbage is a twentieth of a short command.
    gc.set_threshold(50_000, 10, 10)
    # Trees are walked recursively, with up to three frames a level; a path has up to 2,047 names (PATH_MAX, linux/limits.h).
    sys.setrecursionlimit(8000)
    status = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:
        status = status or 1
    os._exit(status)


def _speak_utf8() -> None:
    """Names in images and contexts are bytes, and mostly UTF-8, whatever the locale says: they come and go unchanged. Closed standard
    streams are opened on /dev/null, or the next file that is opened would get what is meant for them."""
    if sys.getfilesystemencoding() != "utf-8" and "utf8" not in sys._xoptions:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            descriptor = os.open(os.devnull, os.O_RDWR)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            stream = open(number, "w" if number else "r", encoding="utf-8", closefd=False)  # noqa: SIM115  # for as long as the process
            setattr(sys, name, stream)
        stream.reconfigure(encoding="utf-8", errors="backslashreplace" if name == "stderr" else "surrogateescape")


if __name__ == "__main__":
    program()
