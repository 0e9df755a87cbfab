"""What RUN makes of the files below it: each change to a lower layer, and the entries that the new layer has for it, in order."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conformance.built_images import Command, Entry, build_image

pytestmark = pytest.mark.integration

BELOW = (
    "FROM busybox\nRUN mkdir -p /d/sub/deep /e /empty && echo 1 > /d/one && echo 2 > /d/two && echo 3 > /d/sub/three "
    "&& echo 4 > /d/sub/deep/four && ln -s one /d/l && ln /d/one /d/hard && mkfifo /d/ff && echo e > /e/e && echo f > /f && echo g > /g\n"
)

SUBTREE = "{0}sub/ 755 0:0|{0}sub/deep/ 755 0:0|{0}sub/deep/four 644 0:0|{0}sub/three 644 0:0|{0}two 644 0:0"
WHOLE = "{0} 755 0:0|{0}ff fifo 644 0:0|{0}hard 644 0:0|{0}l -> one|{0}one => {0}hard|" + SUBTREE

CHANGES = {
    "true": "",
    "rm /f": ".wh.f",
    "rm -r /d": ".wh.d",
    "rm /d/one /d/sub/three": "d/ 755 0:0|d/.wh.one|d/sub/ 755 0:0|d/sub/.wh.three",
    "rm -r /d && mkdir /d && echo new > /d/new": "d/ 755 0:0|d/.wh.ff|d/.wh.hard|d/.wh.l|d/new 644 0:0|d/.wh.one|d/.wh.sub|d/.wh.two",
    "rm -r /d && mkdir -p /d/sub && echo 9 > /d/one && echo 8 > /d/sub/x": (
        "d/ 755 0:0|d/.wh.ff|d/.wh.hard|d/.wh.l|d/one 644 0:0|d/sub/ 755 0:0|d/sub/.wh.deep|d/sub/.wh.three|d/sub/x 644 0:0|d/.wh.two"
    ),
    "rm -r /empty && mkdir /empty": "",
    "rm -r /d && echo x > /d": "d 644 0:0",
    "rm -r /d && ln -s e /d": "d -> e",
    "rm /f && mkdir /f && echo x > /f/x": "f/ 755 0:0|f/x 644 0:0",
    "rm /f && ln -s g /f": "f -> g",
    "rm /d/l && ln -s two /d/l": "d/ 755 0:0|d/l -> two",
    "rm /f && mkfifo /f": "f fifo 644 0:0",
    "mv /f /f2": ".wh.f|f2 644 0:0",
    "mv /d /d2": ".wh.d|" + WHOLE.format("d2/"),
    "mv /d /d2 && mv /d2 /d": WHOLE.format("d/"),
    "mv /d /e/d && mv /f /e/d/f": ".wh.d|e/ 755 0:0|e/d/ 755 0:0|e/d/f 644 0:0|"
    + WHOLE.format("e/d/").partition("|")[2]
    + "|.wh.f",
    "mv /d /t && mv /e /d && mv /t /e": (
        "d/ 755 0:0|d/e 644 0:0|d/.wh.ff|d/.wh.hard|d/.wh.l|d/.wh.one|d/.wh.sub|d/.wh.two|e/ 755 0:0|e/.wh.e|"
        + WHOLE.format("e/").partition("|")[2]
    ),
    "mv /d /d2 && mkdir /d && echo x > /d/one": (
        "d/ 755 0:0|d/.wh.ff|d/.wh.hard|d/.wh.l|d/one 644 0:0|d/.wh.sub|d/.wh.two|" + WHOLE.format("d2/")
    ),
    "chmod 600 /f": "f 600 0:0",
    "chmod 700 /d": "d/ 700 0:0",
    "chmod 700 /d && chmod 755 /d": "",
    "chown 5:6 /f /d": "d/ 755 5:6|f 644 5:6",
    "chown -h 5:6 /d/l": "d/ 755 0:0|d/l -> one 5:6",
    "touch -d @1000000000 /f": "f 644 0:0",
    "touch /d; touch -d @1000000000 /e": "",
    "echo f > /f": "f 644 0:0",
    "echo more >> /d/hard": "d/ 755 0:0|d/hard 644 0:0",
    "ln /f /f-hard": "f-hard 644 0:0",
    "echo q > /q1 && ln /q1 /q2 && ln /q1 /a0 && ln /q1 /d/zz": "a0 644 0:0|d/ 755 0:0|d/zz => a0|q1 => a0|q2 => a0",
    "rm /d/one": "d/ 755 0:0|d/.wh.one",
    "chmod 600 /d/one": "d/ 755 0:0|d/one 600 0:0",
    "mknod /n1 c 1 3 && mknod /n2 b 7 300 && chmod 600 /n1": "n1 char 600 0:0|n2 block 644 0:0",
    "rm -r /d/sub && mkdir /d/sub && echo x > /d/sub/x && rm /d/l": (
        "d/ 755 0:0|d/.wh.l|d/sub/ 755 0:0|d/sub/.wh.deep|d/sub/.wh.three|d/sub/x 644 0:0"
    ),
    "echo x > /tmp1 && rm /tmp1; mkdir -p /q/w && rm -r /q": "",
    "echo x > /d/tmp && rm /d/tmp": "",
    "cp -a /f /f.new && mv /f.new /f": "f 644 0:0",
    "cp /f /su && chmod 4755 /su && cp /f /sg && chmod 2755 /sg && mkdir /st && chmod 1777 /st && chmod 7777 /e": (
        "e/ 7777 0:0|sg 2755 0:0|st/ 1777 0:0|su 4755 0:0"
    ),
}


def told(entry: Entry) -> str:
    """An entry in a few words: what is at its name."""
    if "/.wh." in "/" + entry.name:
        return entry.name
    owner = f"{entry.owner[0]}:{entry.owner[1]}"
    match entry.kind:
        case "symlink":
            return f"{entry.name} -> {entry.link}" + ("" if entry.owner == (0, 0) else f" {owner}")
        case "hardlink":
            return f"{entry.name} => {entry.link}"
        case "fifo" | "char" | "block":
            return f"{entry.name} {entry.kind} {entry.mode:o} {owner}"
        case _:
            return f"{entry.name} {entry.mode:o} {owner}"


def test_each_change_has_its_entries(pybuild: Command, tmp_path: Path) -> None:
    wrong = {}
    for number, (command, expected) in enumerate(CHANGES.items()):
        image = build_image(pybuild, f"{BELOW}RUN {command}\n", tmp_path / f"c{number}")
        found = "|".join(map(told, image.layers[-1]))
        if found != expected:
            wrong[command] = (found, expected)
    assert not wrong
