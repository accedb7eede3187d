"""Makes cleaning.json, which test_cleaning.py reads. Needs ftfy 6.3.1; see the table in README.md."""

from __future__ import annotations

import json
import random
import re
import sys
from html.entities import html5
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from odd_strings import odd_strings  # noqa: E402

SURROGATES = re.compile("[\ud800-\udfff]")
QUOTES = "‘’‚‛“”„‟ʼ'\"ĲĳŉǱǲǳǄǅǆǇǈǉǊǋǌﬀﬁﬂﬃﬄﬅﬆ"
WIDE = "ＡＢｃ１２，。（）：＆；＃ｶﾞﾊﾟ　￠ﾡ&;amplt#38x \x80\x93\x94\x85\x9f\x81"


def troublesome(count: int, seed: int) -> list[str]:
    """Odd strings, typographic ones and entities, nested and in capitals."""
    draw = random.Random(seed)
    names = sorted(html5)

    def entity() -> str:
        name = draw.choice(names) if draw.random() < 0.7 else draw.choice(names).upper()
        numbers = f"&#{draw.randint(0, 70_000)};", f"&#x{draw.randint(0, 0x120000):x};"
        return draw.choice([f"&{name}", f"&amp;{name}", *numbers, "a", "<", "\n", " ", "&AMP;", "amp;", "&lt;"])

    entities = ["".join(entity() for _ in range(draw.randint(1, 8))) for _ in range(count)]
    typed = ["".join(draw.choice(QUOTES + WIDE + "abc ") for _ in range(draw.randint(1, 20))) for _ in range(count)]
    return [text for text in [*odd_strings(count, seed), *typed, *entities] if not SURROGATES.search(text)]


def reference(text: str) -> str:
    """What ftfy makes of it, without repairing wrongly decoded text, line ends and terminal escapes."""
    import ftfy

    return ftfy.fix_text(text, fix_encoding=False, fix_line_breaks=False, remove_terminal_escapes=False)


if __name__ == "__main__":
    rows = [[text, reference(text)] for text in troublesome(200, seed=3)]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (HERE / "cleaning.json").write_text(f"[\n{lines}\n]\n")
