"""The page's QR codes, beside those of another encoder."""

import hashlib
from typing import Any

import pytest

from tests.support.node import run_js
from tests.support.processes import ROOT

TEXT = "https://clocks.example.org/?session=" + "0123456789abcdef-" * 60
# What Project Nayuki's qrcodegen 1.8 (MIT) makes of the first so many characters of TEXT, in that version,
# with that mask: the beginning of the SHA-256 of its modules, row by row as 0 and 1. Each version is here.
CODES = [
    (0, 1, 0, "39e30f72074b75ed"),
    (1, 1, 2, "7571c2470b993b48"),
    (2, 1, 3, "cb29d04061936913"),
    (3, 1, 7, "1f9320b83f4096d3"),
    (4, 1, 6, "e9fdee95931ca754"),
    (17, 1, 3, "8178ef12fc910f68"),
    (21, 2, 5, "f3eb5129871340d9"),
    (27, 2, 3, "f0e804f727e97748"),
    (41, 3, 4, "f43bc415d3920418"),
    (48, 3, 4, "ab159c00821ab8e7"),
    (73, 4, 2, "9e9e4cd1d7fc9854"),
    (101, 5, 2, "0951254241040f9f"),
    (129, 6, 2, "c7c3b3a304e393b4"),
    (149, 7, 2, "49a67898ed807c60"),
    (187, 8, 7, "92caf99a3f4cc2e4"),
    (225, 9, 2, "6264d411b1f579be"),
    (266, 10, 2, "f7aaecc6d7ec5bb5"),
    (316, 11, 2, "7844ca0df6fb0503"),
    (362, 12, 2, "9ed9cfee91a0bffb"),
    (420, 13, 2, "577d132f93d29282"),
    (453, 14, 2, "f27a50daa9fc6642"),
    (515, 15, 2, "5ae9c32b1e5ba355"),
    (581, 16, 2, "6c6b0f0f11de7825"),
    (639, 17, 2, "3c5633b3a684d49c"),
    (713, 18, 2, "6571ef11b14ec80e"),
    (787, 19, 2, "5814ef0ed1a5a37d"),
    (853, 20, 2, "a26fbfcba7144860"),
]
# So that each mask is here, too: of "59".
MASK_1 = ("59", 1, 1, "8ce0d743a40d21b1")
LONGEST = 858

SCRIPT = """
const { qrCode } = await import(args[0]);
return args[1].map(qrCode).map((code) => code && { ...code, modules: [...code.modules].join("") });
"""


@pytest.fixture(scope="module")
def codes() -> list[Any]:
    """Of the texts of CODES and MASK_1, and of three more."""
    of_codes = [TEXT[:length] for length, *_ in CODES]
    texts = [*of_codes, MASK_1[0], TEXT[:LONGEST], TEXT[: LONGEST + 1], "\N{STOPWATCH}" * 6]
    made: list[Any] = run_js(SCRIPT, (ROOT / "handlers" / "page" / "qr.js").as_uri(), texts)
    return made


def test_each_module_is_as_another_encoder_has_it(codes: list[Any]) -> None:
    wanted = [*CODES, MASK_1]
    made = [
        (text, code["version"], code["mask"], hashlib.sha256(code["modules"].encode()).hexdigest()[:16])
        for (text, *_), code in zip(wanted, codes, strict=False)
    ]
    assert made == wanted
    assert {mask for _, _, mask, _ in wanted} == set(range(8))


def test_a_text_takes_the_smallest_version_and_none_where_it_is_too_long(codes: list[Any]) -> None:
    longest, too_long, stopwatches = codes[-3:]
    assert (longest["version"], longest["size"]) == (20, 97)
    assert too_long is None
    assert stopwatches["version"] == 2, "18 bytes of UTF-8 are one more than version 1 holds"
