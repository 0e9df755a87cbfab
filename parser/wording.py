"""What is said when the tokens of an instruction don't fit the grammar: BuildKit's words, the culprit, a remedy.

Never decides that something is wrong: the grammar did.
"""

from __future__ import annotations

from collections.abc import Sequence

from pybuild.values import replace

from .flags import read_flags
from .go_text import quote
from .lalr import UnexpectedToken
from .tokens import KEYWORDS, Token, TokenError

_FORMS = {
    "ADD": "ADD SOURCE… DESTINATION",
    "ARG": "ARG NAME[=DEFAULT] …",
    "COPY": "COPY SOURCE… DESTINATION",
    "ENV": "ENV NAME=VALUE …",
    "EXPOSE": "EXPOSE PORT[/PROTOCOL] …",
    "FROM": "FROM IMAGE [AS NAME]",
    "HEALTHCHECK": "HEALTHCHECK [OPTIONS] CMD COMMAND, or HEALTHCHECK NONE",
    "LABEL": "LABEL NAME=VALUE …",
    "MAINTAINER": "MAINTAINER NAME",
    "ONBUILD": "ONBUILD INSTRUCTION",
    "SHELL": 'SHELL ["/bin/bash", "-c"]',
    "STOPSIGNAL": "STOPSIGNAL SIGTERM",
    "USER": "USER NAME[:GROUP]",
    "VOLUME": "VOLUME PATH …",
    "WORKDIR": "WORKDIR PATH",
}


def wrong_arguments(tokens: Sequence[Token], error: UnexpectedToken) -> TokenError:
    """The error for the token at which the grammar had to give up."""
    index = error.index
    position = 0
    if tokens[0].type == "ONBUILD":
        # The trigger is the instruction to speak of, unless it can't be one.
        position = next((i for i in range(1, index) if tokens[i].type in KEYWORDS), 0)
    keyword = tokens[position].type
    arguments = [token for token in tokens[position + 1 :] if token.type != "FLAG"]
    # What BuildKit checks before the arguments: of ENV and LABEL only where there are none, of HEALTHCHECK where there are.
    if (
        keyword == "SHELL"
        or (keyword in ("ENV", "LABEL") and not arguments)
        or (keyword == "HEALTHCHECK" and arguments)
    ):
        try:
            read_flags(keyword, [token for token in tokens[position + 1 :] if token.type == "FLAG"])
        except TokenError as flag_error:
            return flag_error
    form = f"The form is: {_FORMS[keyword]}" if keyword in _FORMS else None
    if index == len(tokens):
        return _too_early(keyword, arguments, start=tokens[position].start, end=tokens[-1].end, form=form)
    return _unfit(keyword, arguments, culprit=tokens[index], previous=tokens[index - 1], form=form)


def _too_early(keyword: str, arguments: Sequence[Token], *, start: int, end: int, form: str | None) -> TokenError:
    """The instruction ended where the grammar wanted more."""
    instruction = True
    match keyword:
        case "FROM":
            message = "FROM requires either one or three arguments"
        case "ADD" | "COPY" if len(arguments) > 1 and arguments[-1].type == "HEREDOC":
            return heredoc_destination(keyword, arguments[-1])
        case "ADD" | "COPY":
            message = (
                f"{keyword} requires at least two arguments, but only one was provided. Destination could not be "
                "determined"
            )
        case "ENV" | "LABEL" if len(arguments) == 1:
            message, instruction = f"{keyword} must have two arguments", False
        case "ENV" | "LABEL" if arguments:
            return _no_equal_sign(arguments[-1])
        case "HEALTHCHECK" if arguments:
            message = "Missing command after HEALTHCHECK CMD"
        case "USER" | "WORKDIR" | "STOPSIGNAL" | "MAINTAINER":
            message = f"{keyword} requires exactly one argument"
        case _:
            message = f"{keyword} requires at least one argument"
    return TokenError(message, start=start, end=end, instruction=instruction, hint=form)


def _unfit(
    keyword: str, arguments: Sequence[Token], *, culprit: Token, previous: Token, form: str | None
) -> TokenError:
    """``culprit`` is a token that the grammar doesn't allow at its place."""
    hint = form
    match keyword:
        case "FROM":
            message = "FROM requires either one or three arguments"
        case "ADD" | "COPY" if culprit.type == "RSQB":
            message = (
                f"{keyword} requires at least two arguments, but only one was provided. Destination could not be "
                "determined"
            )
        case "ENV" | "LABEL":
            return _no_equal_sign(previous)
        case "HEALTHCHECK":
            kind = arguments[0]
            message = f"Unknown type {quote(kind.text.upper())} in HEALTHCHECK (try CMD)"
            if kind.type == "NONE":
                message = "HEALTHCHECK NONE takes no arguments"
            elif kind.type == "PROBE":
                message = "Missing command after HEALTHCHECK CMD"
        case "SHELL" if culprit.type == "TEXT":
            message = "SHELL requires the arguments to be in JSON form"
        case "ONBUILD" if culprit.type == "ONBUILD":
            message = "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"
            hint = "Write the trigger after one ONBUILD"
        case "ONBUILD":
            message = f"{culprit.type} isn't allowed as an ONBUILD trigger"
            hint = "Any instruction but ONBUILD, FROM and MAINTAINER can be a trigger"
        case _:
            message = f"{keyword} requires at least one argument"
    return TokenError.at(message, culprit, hint=hint)


def blank_name(keyword: str, key: Token) -> TokenError:
    """A pair begins with its equal sign; ``key`` is the empty token in front of it."""
    return TokenError.at(
        f"{keyword} names can not be blank", replace(key, end=key.start + 1), hint=f"The form is: {_FORMS[keyword]}"
    )


def heredoc_destination(keyword: str, destination: Token) -> TokenError:
    """COPY's or ADD's last word opens a here-document."""
    return TokenError.at(
        f"{keyword} cannot accept a heredoc as a destination",
        destination,
        hint="Write the destination last, after the heredoc",
    )


def _no_equal_sign(key: Token) -> TokenError:
    return TokenError.at(
        f"Syntax error - can't find = in {quote(key.text)}. Must be of the form: name=value",
        key,
        hint='Put quotes around a value that holds blanks: NAME="a b"',
        instruction=False,
    )
