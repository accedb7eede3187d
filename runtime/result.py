"""What a pipeline gives: the result of a request, and how far it is. Joins pictures with what made them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import PIL.Image

from clipskip.engines.manifest import ModelFacts

from . import metadata
from .errors import RequestError
from .fields import at_least, shown
from .ledger import Ledger
from .noise import image_seeds
from .request import Request


@dataclass(frozen=True)
class Result:
    """What one request gave.

    `images` are 8-bit RGB pictures, one per seed of `seeds`; `request` is the request with every default filled in;
    `warnings` is what the user should know; `timings` are seconds per stage of the run that made it; `engines` maps
    what took part, such as "text-12" or "step-cuda" (a form), to the key of its artefact; `inversions` maps each
    textual inversion that the prompts used to its SHA-256, `loras` each LoRA by its file's name likewise (and
    `lora_hashes` to the hash that A1111 writes), `pictures` each field that had one to the picture's; `ledger` is that
    of the picture which was repeated, if one.
    """

    images: tuple[PIL.Image.Image, ...]
    seeds: tuple[int, ...]
    request: Request
    warnings: tuple[str, ...]
    timings: dict[str, float]
    engines: dict[str, str]
    model: ModelFacts = field(repr=False)
    inversions: dict[str, str] = field(default_factory=dict, repr=False)
    loras: dict[str, str] = field(default_factory=dict, repr=False)
    lora_hashes: dict[str, str] = field(default_factory=dict, repr=False)
    pictures: dict[str, str] = field(default_factory=dict, repr=False)
    ledger: Ledger | None = field(default=None, repr=False)

    def save(
        self, target: metadata.Target, index: int = 0, format: str | None = None, *, overwrite: bool = True
    ) -> None:
        """Write image `index` with the whole request in its metadata; a file is written, and replaced, in one step.

        The suffix says the format: .png, .jpg or .jpeg (quality 95), .webp (lossless). An open binary file gets a PNG.
        `format` ("PNG", "JPEG", "WEBP") overrules both. Without `overwrite`, FileExistsError where a file is there.
        RequestError for another index, target or format.
        """
        metadata.save(self._image(index), target, self.origin(index), overwrite, format)

    def png(self, index: int = 0) -> bytes:
        """Image `index` as the bytes of a PNG, with the whole request in its metadata."""
        return metadata.encode(self._image(index), self.origin(index))

    def _image(self, index: int) -> PIL.Image.Image:
        if at_least("index", index, 0) >= len(self.images):
            raise RequestError(f"index must be 0..{len(self.images) - 1}, not {shown(index)}", field="index")
        return self.images[index]

    def origin(self, index: int) -> metadata.Origin:
        """What made image `index`, for its metadata."""
        asked = self.alone(index).over(self.pictures)
        return metadata.Origin(asked, self.model, self.engines, self.inversions, self.loras, self.lora_hashes)

    def alone(self, index: int) -> Request:
        """The request that makes image `index` again by itself."""
        asked = self.request
        assert asked.seed is not None
        seed, subseed = image_seeds(asked.seed, asked.subseed, asked.subseed_strength, asked.batch)[index]
        return replace(asked, seed=seed, subseed=subseed, batch=1)


@dataclass(frozen=True)
class Progress:
    """`call` of `calls` model evaluations, counted per image, are done. The last Progress has one result per request.

    `preview()` decodes what the last call takes for the finished pictures, at no further call of the network, with the
    tiny decoder where the store has it: coarse at first, near the end all but finished, and noise for one that had no
    call yet. Of the last one they are the pictures themselves.
    """

    call: int
    calls: int
    preview: Callable[[], list[PIL.Image.Image]] = field(repr=False)
    results: tuple[Result, ...] = ()
