"""Compiles parser/grammar.lark with Lark into parser/_tables.py: LALR(1) tables as plain data.

Importing Lark costs more than parsing a thousand lines, so the product reads the tables; this tool and the tests read
the grammar. Run it after every change of the grammar: ``python tools/compile_grammar.py``; ``--check`` only compares.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "parser"


def compile_tables(grammar: str) -> str:
    """The text of ``_tables.py`` for a grammar."""
    from lark import Lark
    from lark.parsers.lalr_analysis import Shift

    lark = Lark(grammar, parser="lalr", lexer=_no_lexer(), maybe_placeholders=False)
    # Lark has no public accessor for its tables; pinned by the test that compares both parsers.
    table: Any = lark.parser.parser._parse_table
    # Lark numbers states and rules as its sets happen to be ordered; here both are numbered by what they are.
    reduced = {target for row in table.states.values() for action, target in row.values() if action is not Shift}
    ordered = sorted(reduced, key=lambda rule: (str(rule.origin.name), [str(symbol.name) for symbol in rule.expansion]))
    rules = [(str(rule.origin.name), len(rule.expansion)) for rule in ordered]
    rule_numbers = {rule: number for number, rule in enumerate(ordered)}
    state_numbers = {table.start_states["start"]: 0}
    queue = [table.start_states["start"]]
    for state in queue:
        for _, (action, target) in sorted(table.states[state].items()):
            if action is Shift and target not in state_numbers:
                state_numbers[target] = len(queue)
                queue.append(target)
    states = [
        {
            name: state_numbers[target] if action is Shift else ~rule_numbers[target]
            for name, (action, target) in sorted(table.states[state].items())
        }
        for state in queue
    ]
    lines = [
        '"""LALR(1) tables of grammar.lark, made by tools/compile_grammar.py. Don\'t edit."""',
        "",
        "# fmt: off",
        "from __future__ import annotations",
        "",
        f'GRAMMAR_SHA256 = "{hashlib.sha256(grammar.encode()).hexdigest()}"',
        "START = 0",
        f"END = {state_numbers[table.end_states['start']]}",
        "# Rules: (name, number of symbols). States: symbol -> state to enter, or ~rule to reduce by.",
        "RULES: tuple[tuple[str, int], ...] = (",
        *(f"    {rule!r}," for rule in rules),
        ")",
        "STATES: tuple[dict[str, int], ...] = (",
        *(f"    {state!r}," for state in states),
        ")",
        "",
    ]
    return "\n".join(lines).replace("'", '"').replace('Don"t', "Don't")


def _no_lexer() -> Any:
    from lark.lexer import Lexer

    class NoLexer(Lexer):
        """The tokens come from elsewhere; compiling reads none."""

        def __init__(self, lexer_conf: Any) -> None:
            pass

        def lex(self, lexer_state: Any, parser_state: Any) -> Any:
            raise NotImplementedError

    return NoLexer


def main() -> int:
    text = compile_tables((FOLDER / "grammar.lark").read_text(encoding="utf-8"))
    target = FOLDER / "_tables.py"
    if "--check" in sys.argv[1:]:
        fresh = target.exists() and target.read_text(encoding="utf-8") == text
        print("parser/_tables.py is " + ("fresh" if fresh else "stale: run tools/compile_grammar.py"))
        return 0 if fresh else 1
    target.write_text(text, encoding="utf-8")
    print(f"parser/_tables.py: {text.count(chr(10))} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
