"""The prompt grammar of AUTOMATIC1111 1.10, from a text to chunks of 77 weighted token ids.

In order: `parts.without_comments` and `networks` take out what is no text, `composition` splits at AND, `editing` says
which text is used up to which step, `attention` finds the weights in one text, `chunks` cuts it for the text encoder;
`parts` does it all for a request. Every function is iterative and linear in the text (times the steps for `editing`).
"""

from .chunks import Chunk, Spans, chunks, empty_chunk
from .editing import editing
from .parts import check_text, networks
from .weights import attention, composition

__all__ = ["Chunk", "Spans", "attention", "check_text", "chunks", "composition", "editing", "empty_chunk", "networks"]
