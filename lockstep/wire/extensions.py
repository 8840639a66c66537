"""Extensions of the WebSocket that a client offers (RFC 6455 9.1), of which permessage-deflate is granted."""

import re
from collections.abc import Iterator

PERMESSAGE_DEFLATE = "permessage-deflate"

# A connection keeps no window in either direction: one compressed frame serves a whole room.
_GRANTED = f"{PERMESSAGE_DEFLATE}; server_no_context_takeover; client_no_context_takeover"

# RFC 7230 3.2.6. Quantifiers of single characters do not backtrack, and those of groups have no other way to
# match: no header takes longer than its length. Python before 3.11.5 gets possessive ones of groups wrong.
_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
_QUOTED = r'"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t \x21-\x7e\x80-\xff])*"'
_NAME = re.compile(rf"[ \t]*+({_TOKEN})[ \t]*+")
_PARAMETER = re.compile(rf";[ \t]*+({_TOKEN})[ \t]*+(?:=[ \t]*+({_TOKEN}|{_QUOTED})[ \t]*+)?")
_NOTHING = re.compile(r"[ \t]*+")
_WINDOW_BITS = re.compile(r"8|9|1[0-5]")

_Parameters = list[tuple[str, str | None]]


def granted(offered: str) -> str | None:
    """The answer to these offers, a value of Sec-WebSocket-Extensions: to the first one that can be granted.

    None: no extension is used. An offer in which anything is odd is declined.
    """
    for name, parameters in _offers(offered):
        if name == PERMESSAGE_DEFLATE and _can_grant(parameters):
            window = "; server_max_window_bits=15" if ("server_max_window_bits", "15") in parameters else ""
            return _GRANTED + window
    return None


def _can_grant(parameters: _Parameters) -> bool:
    if len(dict(parameters)) != len(parameters):
        return False
    for name, value in parameters:
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value is not None:
                return False
        elif name == "server_max_window_bits":
            # All who are sent a frame would have to have asked for the same window.
            if value != "15":
                return False
        elif name == "client_max_window_bits":
            if value is not None and not _WINDOW_BITS.fullmatch(value):
                return False
        else:
            return False
    return True


def _offers(header: str) -> Iterator[tuple[str, _Parameters]]:
    """Each extension with its parameters, quoted values with their quotes.

    None of them where the header breaks the grammar: nobody can tell then where an offer ends.
    """
    offers: list[tuple[str, _Parameters]] = []
    at = 0
    while True:
        if name := _NAME.match(header, at):
            at = name.end()
            parameters: _Parameters = []
            while parameter := _PARAMETER.match(header, at):
                at = parameter.end()
                parameters.append((parameter[1], parameter[2]))
            offers.append((name[1], parameters))
        elif nothing := _NOTHING.match(header, at):  # a list may have empty items
            at = nothing.end()
        if at == len(header):
            return iter(offers)
        if header[at] != ",":
            return iter(())
        at += 1
