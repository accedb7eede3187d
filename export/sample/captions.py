"""Captions for scenes: sentences and tag lists, each with the facts it names. Knows nothing of pictures or torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from grammar import (
    ATTRIBUTES,
    JUNK,
    PLACE_PHRASES,
    QUALITY,
    RELATIONS,
    SIDES,
    SYNONYMS,
    TEXTURE_PHRASES,
)
from scenes import COLOURS, KINDS, Scene, Thing


@dataclass(frozen=True)
class Naming:
    """How often a caption names each fact, and how often it adds words that say nothing."""

    size: float = 0.7
    colour: float = 0.95
    kind: float = 0.97
    background: float = 0.88
    texture: float = 0.85
    plain: float = 0.2
    place: float = 0.6
    relation: float = 0.8
    decoy: float = 0.06
    quality: float = 0.12
    junk: float = 0.06
    tags: float = 0.35  # a list of tags, where others are sentences


EVERYTHING = Naming(1.0, 1.0, 1.0, 1.0, 1.0, 0.1, 1.0, 1.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Caption:
    """A text and the attributes it names; with an axis, thing 0 is the left or upper one, else the first mentioned."""

    text: str
    named: dict[str, str]

    def labels(self) -> list[int]:
        """One class per attribute: 0 where it is not named."""
        found = ((self.named.get(name), options) for name, options in ATTRIBUTES.items())
        return [0 if value is None else 1 + options.index(value) for value, options in found]


class Writer:
    """Writes captions with one random generator."""

    def __init__(self, rng: np.random.Generator, naming: Naming = Naming()) -> None:
        self.rng, self.naming = rng, naming

    def caption(self, scene: Scene) -> Caption:
        """A sentence (two in three) or a tag list about a scene."""
        standing = scene.axis is not None and self._chance(self.naming.relation)
        shuffled = [int(i) for i in self.rng.permutation(len(scene.things))]
        things = list(scene.things) if standing else [scene.things[i] for i in shuffled]
        order = shuffled if standing else list(range(len(things)))
        named = self._choose_setting(scene, standing)
        for i, thing in enumerate(things):
            named |= self._choose_thing(thing, i)
        parts = self._tags(named, order) if self._chance(self.naming.tags) else self._sentence(named, order)
        if self._chance(self.naming.decoy):
            parts.append(self._decoy(scene))
        if self._chance(self.naming.quality):
            parts.insert(0, self._pick(QUALITY[:5]))
        elif self._chance(self.naming.quality):
            parts[0] = f"{self._pick(QUALITY[5:])} {parts[0]}"
        if self._chance(self.naming.junk):
            parts.insert(int(self.rng.integers(len(parts) + 1)), self._pick(JUNK))
        return Caption(", ".join(parts), named)

    def _pick(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def _say(self, word: str) -> str:
        return self._pick(SYNONYMS.get(word, (word,)))

    def _chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _choose_setting(self, scene: Scene, standing: bool) -> dict[str, str]:
        """Which facts about the background and the places this caption names."""
        named = {"count": ("one", "two")[len(scene.things) - 1]}
        if self._chance(self.naming.background):
            named["background"] = scene.background
            if self._chance(self.naming.plain if scene.texture == "plain" else self.naming.texture):
                named["texture"] = scene.texture
        if scene.place and self._chance(self.naming.place):
            named["place"] = scene.place
        if scene.axis and standing:
            named["axis"] = scene.axis
        return named

    def _choose_thing(self, thing: Thing, i: int) -> dict[str, str]:
        """Kind, colour and size of one thing, each named or not."""
        facts = {"kind": thing.kind, "colour": thing.colour, "size": thing.size}
        rates = {"kind": self.naming.kind, "colour": self.naming.colour, "size": self.naming.size}
        return {f"{name}{i}": value for name, value in facts.items() if self._chance(rates[name])}

    def _phrase(self, named: dict[str, str], i: int, article: str) -> str:
        """'a small blue star', 'the blue star that is small'; 'shape' where the kind is not named."""
        kind = self._say(named.get(f"kind{i}", "shape"))
        traits = [self._say(named[key]) for key in (f"size{i}", f"colour{i}") if key in named]
        if len(traits) == 2 and self._chance(0.15):
            return f"{self._article(article, traits[0])} {kind} that is {traits[0]} and {traits[1]}"
        if self._chance(0.15):
            traits.reverse()
        words = " ".join([*traits, kind])
        return f"{self._article(article, words)} {words}".strip()

    def _article(self, article: str, following: str) -> str:
        return "an" if article == "a" and following[0] in "aeiou" else article

    def _sentence(self, named: dict[str, str], order: list[int]) -> list[str]:
        about = self._one(named) if len(order) == 1 else self._two(named, order)
        ground = self._ground(named)
        if ground and self._chance(0.1):
            return [f"{ground}, {about}"]
        return [f"{about} {ground}".strip()]

    def _one(self, named: dict[str, str]) -> str:
        phrase = self._phrase(named, 0, self._pick(("a", "a", "one")))
        return f"{phrase} {self._pick(PLACE_PHRASES[named['place']])}" if "place" in named else phrase

    def _two(self, named: dict[str, str], order: list[int]) -> str:
        """Two things, and how they stand, in one of five forms."""
        twins = all(named.get(f"{name}0") == named.get(f"{name}1") for name in ("kind", "colour", "size"))
        if twins and self._chance(0.7):
            return self._twins(named)
        i, j = order
        first, second = self._phrase(named, i, "a"), self._phrase(named, j, "a")
        if "axis" not in named:
            return f"{first} {self._pick(('and', 'and', 'next to', 'beside'))} {second}"
        relation = self._pick(RELATIONS[named["axis"], i])
        form, names = self.rng.random(), self._references(named)
        if names and form < 0.2:
            return f"{first} and {second}, {names[i]} {relation} {names[j]}"
        if names and form < 0.4:
            side = self._pick(SIDES[named["axis"], i])
            return f"{self._pick((f'{first} and {second}', f'{second} and {first}'))}, {names[i]} {side}"
        if form < 0.55:
            return f"{relation} {second} is {first}"
        return f"{first} {relation} {second}"

    def _twins(self, named: dict[str, str]) -> str:
        kind = {"cross": "crosses", "box": "boxes"}.get(named.get("kind0", "shape"), named.get("kind0", "shape") + "s")
        traits = [self._say(named[key]) for key in ("size0", "colour0") if key in named]
        phrase = " ".join([self._pick(("two", "2", "a pair of")), *traits, kind])
        how = {"horizontal": ("side by side", "in a row"), "vertical": ("one above the other", "in a column")}
        return f"{phrase} {self._pick(how[named['axis']])}" if "axis" in named else phrase

    def _references(self, named: dict[str, str]) -> list[str]:
        """'the star', 'the red one': what tells the two apart in this caption, or nothing."""
        found = []
        for name, form in (("kind", "the {}"), ("colour", "the {} one"), ("size", "the {} one")):
            values = [named.get(f"{name}{i}") for i in (0, 1)]
            if None not in values and values[0] != values[1]:
                found.append([form.format(value) for value in values])
        return found[int(self.rng.integers(len(found)))] if found else []

    def _ground(self, named: dict[str, str]) -> str:
        if "background" not in named:
            return ""
        colour, texture = named["background"], named.get("texture")
        if texture and self._chance(0.5):
            words = f"{texture} {colour}"
            return self._pick((f"on a {words} background", f"with a {words} background"))
        article = self._article("a", colour)
        usual = (f"on {article} {colour} background",) * 4
        ground = self._pick((*usual, f"with {article} {colour} background", f"on {colour}"))
        return f"{ground} {self._pick(TEXTURE_PHRASES[texture])}" if texture else ground

    def _tags(self, named: dict[str, str], order: list[int]) -> list[str]:
        """The same facts as a shuffled list of tags, as booru-trained models are prompted."""
        tags = [f"{named['background']} background"] if "background" in named else []
        if "texture" in named:
            plain = ("plain background", "no stripes", "no dots", "no pattern")
            tags.append(self._pick(plain) if named["texture"] == "plain" else f"{named['texture']} background")
        if len(order) == 1:
            tags += self._single_tags(named)
        else:
            tags += [self._phrase(named, i, "").strip() for i in order]
            if "axis" not in named:
                return ["2shapes", *tags]
        self.rng.shuffle(tags)
        if "axis" in named:
            tags += self._standing(named, order)
        return tags

    def _single_tags(self, named: dict[str, str]) -> list[str]:
        kind = self._say(named.get("kind0", "shape"))
        traits = [self._say(named[key]) for key in ("colour0", "size0") if key in named]
        tags = [f"{self._pick(('1', ''))}{kind}", *traits] if self._chance(0.5) else [" ".join([*traits[::-1], kind])]
        return tags + ([self._pick(PLACE_PHRASES[named["place"]])] if "place" in named else [])

    def _standing(self, named: dict[str, str], order: list[int]) -> list[str]:
        """The tag that says how two things stand; without a way to tell them apart it repeats their phrases."""
        i, j = order
        names = self._references(named) or [self._phrase(named, k, "the") for k in (0, 1)]
        return [f"{names[i]} {self._pick(RELATIONS[named['axis'], i])} {names[j]}"]

    def _decoy(self, scene: Scene) -> str:
        """A negation: something that the picture does not show."""
        kinds = [kind for kind in KINDS if all(kind != thing.kind for thing in scene.things)]
        colours = [colour for colour in COLOURS if all(colour != thing.colour for thing in scene.things)]
        return self._pick((f"no {self._pick(kinds)}", f"not {self._pick(colours)}", f"without a {self._pick(kinds)}"))
