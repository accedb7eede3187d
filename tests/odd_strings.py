"""Odd strings for what reads text: those that people found troublesome, and any number of random ones."""

from __future__ import annotations

import random

# Each is here for a reason that its characters show; generated ones follow.
BY_HAND = """
a photo of a cat|A PHOTO of a CAT|masterpiece, best quality, (1girl:1.2)|v1.5-pruned|supercalifragilisticexpialidocious
don't|Don’t|DON'T|should've we'll I'm he'd they're it's|'s|'re're|don't'll've|a's b'S c'LL|'''|rock 'n' roll|o'clock
résumé|re\u0301sume\u0301|naïve café|e\u0301\u0302|a\u0327\u0301|Å \u212b A\u030a|ﬁne ﬂ|\u1100\u1161\u11a8
\u0130stanbul ıI|ß ẞ|Σσς|ǅ Ǆ|Ａｂｃ１２３|½ ² Ⅷ ٣|①②③|𝓗𝓮𝓵𝓵𝓸
日本語のテスト|한국어|العربية|עברית|हिन्दी|ไทย|Ελληνικά|Кириллица
😀|👩‍👩‍👧‍👦|🏳️‍🌈|👍🏽|🅰️|😀😀😀|cat😀dog|a\u200bb|a\u00a0b|a\u2028b\u2029c|a\tb\nc\r\nd\x0be\x0cf|\u3000全角
  lead|trail  |a  b   c|\x00|a\x00b|\x1b[31mred\x1b[0m
\x7f\x80\x9f|a\x85b|\ufeffbom|\u202ertl|\ue000\uffff|\U0010ffff|&amp; &lt;b&gt;|ÃƒÂ©
“quoted” ‘single’ — – …|!!!???...,,,|((((|[[a]]|a,b,c|C++ C# .NET|#hashtag @mention|a_b-c|``|\"\"
http://example.com/?a=1&b=2
3.14159|1,000,000|1st 2nd 3rd
100%|$5 €6 £7|x2y3|2024-12-31T23:59:59|<|end|<lora:x:1>|{a}|\\|/|^_^|~~~|;-)
""".replace("\n", "|").split("|")
SPECIAL = ["", " ", "x" * 300, "ab" * 150, ", " * 100, "<|endoftext|>", "<|startoftext|> hi <|endoftext|>"]
SPECIAL += ["<|ENDOFTEXT|>", "a<|endoftext|>b", "<|endoftext|", "|", "a|b", "<||>"]
POOLS = [
    "abcdefgh ",
    "ABCxyz'",
    "0123456789.,",
    "!?;:-_()[]{}<>|/\\",
    "éèüñçøåß ",
    "日本語中文字 ",
    "😀🎉👍🏽\u200d\ufe0f",
]
POOLS += [
    "\u00a0\u2003\u3000\t\n ",
    "'s't're've'm'll'd ",
    "عربيעברית ",
    "\u0301\u0308\u0327aeiou",
    "\x00\x01\x1f\x7f\x85\xad",
]
PLANES = [(0x20, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]


def odd_strings(count: int, seed: int) -> list[str]:
    """`count` strings: the ones above, random ones from the pools, and for a tenth code points of all planes."""
    draw = random.Random(seed)
    strings = list(dict.fromkeys([*BY_HAND, *SPECIAL]))
    while len(strings) < count - count // 10:
        strings.append("".join(draw.choice(draw.choice(POOLS)) for _ in range(draw.randint(1, 30))))
    while len(strings) < count:
        strings.append("".join(chr(draw.randint(*draw.choice(PLANES))) for _ in range(draw.randint(1, 20))))
    return strings
