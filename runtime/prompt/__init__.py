"""The prompt grammar of AUTOMATIC1111 1.10, from a text to chunks of 77 weighted token ids.

In the order in which they are applied: `composition` splits at AND, `schedule` says which text is used up to which
step, `attention` finds the weights in one text, `chunks` cuts it into what the text encoder takes. Knows nothing of
engines, contexts or pictures. Every function is iterative and linear in the text (times the steps for `schedule`).
"""

from .attention import attention
from .chunks import NO_CONCEPTS, Chunk, Names, chunks, empty_chunk
from .schedule import schedule
from .text import check_text, composition, networks

__all__ = [
    "NO_CONCEPTS",
    "Chunk",
    "Names",
    "attention",
    "check_text",
    "chunks",
    "composition",
    "empty_chunk",
    "networks",
    "schedule",
]
