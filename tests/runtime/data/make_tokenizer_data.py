"""Makes clip_merges.txt.gz and tokenizer.json, which the tests of the tokenizer read. Needs transformers 5.x and the
wheel of open-clip-torch:

    pip download --no-deps open-clip-torch==3.3.0
    python make_tokenizer_data.py open_clip_torch-3.3.0-py3-none-any.whl
"""

from __future__ import annotations

import gzip
import json
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from odd_strings import odd_strings  # noqa: E402
from vocabulary import CLIP_MERGES, read_merges, write_tokenizer  # noqa: E402

MERGES = 48_894  # of 262,145 in the file: those that CLIP was trained with


def main(wheel: str) -> None:
    from transformers import CLIPTokenizer

    with zipfile.ZipFile(wheel) as archive:
        text = gzip.decompress(archive.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    merges = "\n".join(text.split("\n")[1 : MERGES + 1]) + "\n"
    CLIP_MERGES.write_bytes(gzip.compress(merges.encode(), 9, mtime=0))
    with tempfile.TemporaryDirectory() as folder:
        reference = CLIPTokenizer.from_pretrained(write_tokenizer(Path(folder), read_merges()))
        rows = [[string, reference(string, add_special_tokens=False).input_ids] for string in odd_strings(500, seed=3)]
    lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
    (HERE / "tokenizer.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main(sys.argv[1])
