"""Warnings as buildx's metadata file has them (``buildx.build.warnings``). Finds none."""

from __future__ import annotations

from typing import Any

from pybuild.parser import Dockerfile

from .progress import BuildWarning


def warning_json(warning: BuildWarning, dockerfile: Dockerfile | None) -> dict[str, Any]:  # Any: the JSON edge
    """A warning as buildx's metadata file has it; texts are bytes there, and so in base 64."""
    import base64

    def encoded(text: str) -> str:
        return base64.b64encode(text.encode("utf-8", "surrogateescape")).decode("ascii")

    short = f"{warning.rule}: {warning.message}" if warning.rule else warning.message
    out: dict[str, Any] = {"level": 1, "short": encoded(short)}
    if warning.detail:
        out["detail"] = [encoded(warning.detail)]
    if warning.url:
        out["url"] = warning.url
    if warning.lines and dockerfile is not None:
        out["sourceInfo"] = {
            "filename": dockerfile.filename,
            "data": encoded(dockerfile.text),
            "language": "Dockerfile",
        }
        out["range"] = [{"start": {"line": warning.lines[0]}, "end": {"line": warning.lines[1]}}]
    return out
