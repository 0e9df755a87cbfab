"""Which stages an SBOM scan looks at besides the result (``BUILDKIT_SBOM_SCAN_CONTEXT`` and ``_STAGE``).

Owns reading the two arguments; the scan is made elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pybuild.values import dataclass

from .graph import Vertex
from .stage_state import StageState
from .stages import StageNode

_TRUE: Final = frozenset({"1", "t", "T", "TRUE", "true", "True"})
_FALSE: Final = frozenset({"0", "f", "F", "FALSE", "false", "False"})


@dataclass(frozen=True, slots=True)
class ScanRequest:
    """``context``: the build context too; ``stages``: further stages by name."""

    context: bool = False
    stages: tuple[tuple[str, Vertex], ...] = ()


NO_SCAN: Final = ScanRequest()


def scan_request(
    target: StageNode, states: Mapping[StageNode, StageState], globals_: Mapping[str, str], given: Mapping[str, str]
) -> ScanRequest:
    """What the arguments ask for, of the stages that are built."""

    def wants(node: StageNode, name: str) -> bool:
        value = given.get(name, globals_.get(name, "")) if name in globals_ else ""
        for declared, text in states[node].arguments:
            if declared == name and text is not None:
                value = text
        if value in _TRUE or value in _FALSE:
            return value in _TRUE
        return node.name in value.split(",")

    stages = tuple(
        (node.name, state.vertex)
        for node, state in states.items()
        if node.stage is not None and node is not target and wants(node, "BUILDKIT_SBOM_SCAN_STAGE")
    )
    return ScanRequest(context=wants(target, "BUILDKIT_SBOM_SCAN_CONTEXT"), stages=stages)
