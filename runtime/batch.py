"""An open batch: images of one size join, move on by one call of the network at a time, and leave when they are done.

What is stacked is what the step engine's signature lists: an input whose first axis is B gets one value per image, one
whose first axis is N one value per row of the U-Net. Only the engine's own feedback (`state`) and the layout of the
batch (`rows`, `mix`, `reference`) are known by name. Knows nothing of prompts, pictures and threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clipskip.engines.manifest import AxisRange, Dim
from clipskip.engines.shapes import SLOTS, TOKENS
from clipskip.engines.variants import PLAIN, Mix

from .backends import Array, Engine, Loop
from .basis import PREVIEW
from .conditioning import NetworkRow
from .errors import EngineIncompatible
from .noise import Noise
from .samplers import Row

STATE, OUTPUT = "state", "next_state"
LAYOUT = (STATE, "rows", "mix", "reference")  # inputs that the batch itself fills in


@dataclass(eq=False)
class Image:
    """One picture in the making.

    `table`: its sampler's rows; `rows`: its rows of the U-Net, whose contexts are repeated to `chunks` chunks;
    `latents` [4,h,w]: first those it starts from, in the end the finished ones; `inputs`: what else the step engine is
    fed for it, by name. `call` calls are done. `stretched`: it shared a call with longer contexts than its own.
    `forgotten`: nobody wants it any more. `mix`: the LoRAs in its step engine.
    """

    table: Sequence[Row]
    rows: Sequence[NetworkRow]
    latents: Array
    noise: Noise
    chunks: int = 1
    inputs: Mapping[str, Any] = field(default_factory=dict)
    call: int = 0
    stretched: bool = False
    forgotten: bool = False
    mix: Mix = PLAIN

    @property
    def done(self) -> bool:
        return self.call == len(self.table)

    @property
    def left(self) -> int:
        """How many calls are to come."""
        return len(self.table) - self.call

    @property
    def names(self) -> set[str]:
        """All inputs of the step engine that this image has values for."""
        rows = {name for row in self.rows for variant in row.variants for name in variant}
        return {"timestep", "c_in", "update", "noise", *self.inputs, *self.table[0].inputs, *rows}

    def feeds(self) -> dict[str, Any]:
        """The image's values for the next call; noise only for calls that use it."""
        row = self.table[self.call]
        feeds = {"timestep": row.timestep, "c_in": row.c_in, "update": row.update, **self.inputs, **row.inputs}
        return feeds if row.noise is None else {**feeds, "noise": self.noise.normal(self.latents.shape, *row.noise)}

    def first_state(self) -> Array:
        """[K,4,h,w]: what the sampler remembers before the first call."""
        state = np.zeros((SLOTS, *self.latents.shape), dtype=np.float32)
        state[0] = self.latents
        return state

    @property
    def resting(self) -> Array:
        """The finished latents; before the first call the noise that they start from, at unit variance."""
        return self.latents if self.done else np.asarray(self.latents * np.float32(self.table[0].c_in))


def bucket(count: int, most: int) -> int:
    """The smallest power of two that holds `count`, but at most `most`."""
    return min(1 << (count - 1).bit_length(), most)


class Batch:
    """Slots for images and for rows of the U-Net, all of one latent size and `chunks` chunks, on one loop of `engine`.

    The number of slots is a power of two, or the most that the engine takes. `exact_rows`: there are as many rows as
    are in use; otherwise theirs is such a number as well, so that few shapes are ever compiled; they are never fewer
    than the engine takes, and those of nobody weigh 0. An image keeps its slot and its rows while the shape stays;
    where another shape is needed, the loop is bound anew.
    """

    def __init__(self, engine: Engine, image: Image, *, exact_rows: bool) -> None:
        self.size, self.chunks, self.mix = image.latents.shape, image.chunks, image.mix
        self.turn = 0.0  # the driver's: the batch of the least runs next
        self._engine, self._exact_rows = engine, exact_rows
        self._slots: list[Image | None] = []
        self._rows: list[tuple[Image, NetworkRow] | None] = []
        self._joining: list[Image] = []
        self._loop: Loop | None = None
        self._arrays: dict[str, Array] = {}  # what the loop was fed last, state apart
        self._written: dict[tuple[str, int], object] = {}  # the value that stands at each place of it
        self._changed: set[str] = set()  # inputs that the loop has not been told of
        ports = [port for port in engine.artefact.inputs if port.name not in LAYOUT]
        self._per_image = {port.name for port in ports if port.shape[0] == Dim("B")}
        self._per_row = {port.name for port in ports if port.shape[0] == Dim("N")}
        self._repeated = {port.name: port.shape.index(Dim("T")) - 1 for port in ports if Dim("T") in port.shape}

    @property
    def fits(self) -> bool:
        """Whether there is a loop for the images; when there is none after a failed step, none of them was fed."""
        return self._loop is not None

    @property
    def slots(self) -> int:
        """How many images the loop that is bound has room for."""
        return len(self._slots)

    @property
    def images(self) -> list[Image]:
        """Those in a slot, then those that join with the next step."""
        return [*(image for image in self._slots if image is not None), *self._joining]

    def add(self, image: Image) -> None:
        """Let an image of the batch's size take part from the next step on. EngineIncompatible."""
        if odd := image.names ^ self._per_image ^ self._per_row:
            names = ", ".join(sorted(odd))
            message = f"the step engine's inputs are not those of the request: {names}"
            raise EngineIncompatible(message, field="step", hint="another version of clipskip made it: export again")
        image.stretched = image.chunks != self.chunks
        self._joining.append(image)

    def step(self) -> None:
        """Run the network once for all images; those that are done leave, with their finished latents."""
        self._fit()
        for slot, image in enumerate(self._slots):
            for name, value in {} if image is None else image.feeds().items():
                self._put(name, slot, value)
        for place, member in enumerate(self._rows):
            for name, value in {} if member is None else member[1].feeds(member[0].call).items():
                self._put(name, place, value)
        assert self._loop is not None
        self._loop.run({name: self._arrays[name] for name in self._changed})
        self._changed = set()
        images = self.images
        finished = [image for image in images if image.call + 1 == len(image.table)]
        states = self._loop.read(STATE) if len(finished) > 1 else None  # one is read by itself
        for image in finished:
            slot = self._slots.index(image)
            image.latents = (self._loop.read(STATE, slot) if states is None else states[slot])[0]
        self._leave(finished)
        for image in images:
            image.call += 1  # last, for other threads look at it

    def remove(self, image: Image) -> None:
        """Give up an image; the others go on."""
        if image in self._joining:
            self._joining.remove(image)
        else:
            self._leave([image])

    def latents(self, image: Image) -> Array:
        """What the last call took for the finished latents of an image; waits for the device."""
        if not image.call:
            return image.resting
        slot = self._slots.index(image)
        return np.asarray((self._loop.read(STATE, slot) if self._loop else self._arrays[STATE][slot])[PREVIEW])

    def close(self) -> None:
        """Give the loop back. May be called twice."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _fit(self) -> None:
        """Give the joining images free places; where these are too few or too many, bind a loop of another shape.

        The state goes from one loop to the next through the host. Where the device has no memory for the other loop,
        the batch may go on with fewer images.
        """
        axes, images = self._engine.artefact.axes, self.images
        slot_range, row_range = (axes.get(axis, AxisRange(1, 1, 2**31)) for axis in ("B", "N"))
        count = sum(len(image.rows) for image in images)
        slots, rows = bucket(len(images), slot_range.maximum), bucket(count, row_range.maximum)
        rows = max(row_range.minimum, count if self._exact_rows else rows)
        if self._loop is None or (slots, rows) != (len(self._slots), len(self._rows)):
            states = self._loop.read(STATE) if self._loop else self._arrays.get(STATE, np.empty(0))
            kept = {image: states[slot] for slot, image in enumerate(self._slots) if image is not None}
            self.close()
            sizes = {"B": slots, "N": rows, "T": TOKENS * self.chunks, "h": self.size[1], "w": self.size[2]}
            ports = self._engine.artefact.inputs
            self._arrays = {port.name: np.zeros(port.sized(sizes), port.dtype) for port in ports}
            self._slots, self._rows, self._written = [None] * slots, [None] * rows, {}
            for image in images:
                self._arrays[STATE][self._place(image)] = kept[image] if image in kept else image.first_state()
            self._joining = []
            self._lay_out()
            self._loop = self._engine.loop(self._arrays, {OUTPUT: STATE})
        elif self._joining:
            for image in self._joining:
                self._loop.write(STATE, self._place(image), image.first_state())
            self._joining = []
            self._lay_out()

    def _place(self, image: Image) -> int:
        """The slot that is now the image's; its rows have places as well."""
        slot = self._slots.index(None)
        self._slots[slot] = image
        for row in image.rows:
            self._rows[self._rows.index(None)] = image, row
        return slot

    def _lay_out(self) -> None:
        """Which row looks at which slot, with what weight. A row of nobody's looks at an image that is there."""
        somebody = next((slot for slot, image in enumerate(self._slots) if image is not None), 0)
        rows, mix, reference = (self._arrays[name] for name in LAYOUT[1:])
        rows[:], mix[:], reference[:] = somebody, 0, 0
        for place, member in enumerate(self._rows):
            if member is not None:
                slot = self._slots.index(member[0])
                rows[place], mix[slot, place], reference[slot, place] = slot, member[1].weight, member[1].reference
        self._changed |= {*LAYOUT[1:]}

    def _put(self, name: str, place: int, value: Any) -> None:
        """Note a value for one slot or row, unless it stands there already."""
        if self._written.get((name, place)) is value:
            return
        self._written[name, place] = value
        array = self._arrays[name]
        if name in self._repeated:
            axis = self._repeated[name]
            value = np.concatenate([value] * (array.shape[axis + 1] // value.shape[axis]), axis)
        array[place] = value
        self._changed.add(name)

    def _leave(self, images: Sequence[Image]) -> None:
        """Free the images' places; an empty slot remembers nothing."""
        for slot in map(self._slots.index, images):
            self._slots[slot] = None
            self._put("update", slot, 0.0)
        self._rows = [None if member is not None and member[0] in images else member for member in self._rows]
        if images:
            self._lay_out()
