"""Which shapes engines are built for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_graphs import FACTS

from clipskip.engines.manifest import STEP, Artefact, AxisRange, Dim, Port
from clipskip.engines.shapes import (
    BuildOptions,
    axes_of,
    axis_ranges,
    check_within,
    compute_capability,
    kept_layers,
    longest_common,
    parse_sizes,
    profiles,
)
from clipskip.errors import RequestError
from clipskip.export import graphs


@pytest.mark.parametrize(
    ("text", "edges"), [("512", (512, 512, 512)), ("256-768", (256, 768, 768)), ("256-512-768", (256, 512, 768))]
)
def test_sizes_are_written_as_one_two_or_three_numbers(text: str, edges: tuple[int, int, int]) -> None:
    assert parse_sizes(text) == AxisRange(*edges)


@pytest.mark.parametrize("text", ["", "-", "256-", "a", "1-2-3-4", "-5", "1e3", "٣", "512x512", "999999"])
def test_other_sizes_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="256-512-768"):
        parse_sizes(text)


@pytest.mark.parametrize(
    ("own", "step", "latents"),
    [
        (512, 64, (32, 64, 96)), (512, 8, (32, 64, 96)), (768, 64, (48, 96, 144)), (128, 8, (8, 16, 24)),
        (120, 8, (8, 15, 22)), (64, 8, (8, 8, 12)), (64, 32, (8, 8, 12)), (32, 8, (4, 4, 6)), (8, 8, (1, 1, 1)),
    ],
)  # fmt: skip
def test_the_default_sizes_are_around_the_model_s_own_and_such_as_its_graphs_take(
    own: int, step: int, latents: tuple[int, int, int]
) -> None:
    model = replace(FACTS, default_size=own, size_step=step)
    ranges = axis_ranges(model, BuildOptions())
    assert ranges["h"] == ranges["w"] == AxisRange(*latents)
    ports = (Port("latents", "float32", (Dim("B"), 4, Dim("h"), Dim("w"))),)
    check_within(ranges, Artefact(STEP, "onnx", "fp16", (), (), graphs.axes(ports, model)))


def test_a_batch_of_four_and_three_chunks_give_the_rows_of_network_and_text_engine() -> None:
    ranges = axis_ranges(FACTS, BuildOptions(max_batch=4, max_chunks=3))
    assert [ranges[name].maximum for name in "BNTR"] == [4, 8, 462, 24]


def test_clip_skips_are_depths_in_the_words_of_a_request() -> None:
    assert kept_layers([1, 13, 2, 1], range(12, -1, -1)) == [0, 11, 12]
    for skip in (0, 14):
        with pytest.raises(RequestError, match=rf"clip_skip must be 1\.\.13, not {skip}: it counts from 1") as caught:
            kept_layers([skip], range(12, -1, -1))
        assert caught.value.hint == "clip_skip_diffusers takes diffusers' own numbers, 0..12"


def test_the_longest_context_is_the_largest_common_length_of_at_most_twice_the_chunks() -> None:
    assert [longest_common(chunks) for chunks in range(1, 7)] == [1, 2, 6, 6, 10, 12]


def test_one_size_one_image_and_one_chunk_leave_nothing_open_but_the_textual_inversions() -> None:
    ranges = axis_ranges(FACTS, BuildOptions(sizes=AxisRange(64, 64, 64), max_batch=1, max_chunks=1))
    sizes = {name: axis.optimum for name, axis in ranges.items() if axis.minimum == axis.maximum}
    assert sizes == {"B": 1, "N": 2, "R": 2, "T": 77, "h": 8, "w": 8}
    assert ranges.keys() - sizes == {"E"}


def test_engines_for_more_images_also_take_one_row_alone() -> None:
    ranges = axis_ranges(FACTS, BuildOptions(max_batch=2, max_chunks=1))
    assert (ranges["N"], ranges["R"]) == (AxisRange(1, 2, 4), AxisRange(1, 2, 4))


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(max_batch=0),
        BuildOptions(max_chunks=0),
        BuildOptions(sizes=AxisRange(0, 64, 96)),
        BuildOptions(sizes=AxisRange(64, 32, 96)),
        BuildOptions(sizes=AxisRange(32, 64, 80)),
    ],
)
def test_shapes_that_the_model_cannot_do_are_refused(options: BuildOptions) -> None:
    with pytest.raises(RequestError):
        axis_ranges(FACTS, options)


def test_a_profile_has_the_shapes_of_inputs_with_a_dynamic_axis_only() -> None:
    ports = (Port("image", "uint8", (Dim("B"), Dim("h", 8), Dim("w", 8), 3)), Port("fixed", "float32", (2, 2)))
    axes = axes_of(ports, axis_ranges(FACTS, BuildOptions(max_batch=2)))
    assert profiles(ports, axes) == {"image": ((1, 64, 64, 3), (1, 64, 64, 3), (2, 96, 96, 3))}


def test_a_dimension_may_be_a_multiple_of_an_axis() -> None:
    assert Port("image", "uint8", (Dim("B"), Dim("h", 8), 3)).sized({"B": 2, "h": 5}) == (2, 40, 3)


@pytest.mark.parametrize("text", ["8.9", "89", "sm_89", "SM89", "sm89", " 8.9 "])
def test_a_compute_capability_is_one_however_it_is_written(text: str) -> None:
    assert compute_capability(text) == "8.9"
    assert compute_capability("12.0") == compute_capability("sm_120") == "12.0"


@pytest.mark.parametrize("text", ["", "8", "8.", "x", "8.9.1", "٨.٩", "-8.9", "0.9", "1234"])
def test_what_is_no_compute_capability_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match=r"write it as 8\.9") as caught:
        compute_capability(text)
    assert caught.value.field == "compute_capability"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"workspace": -5}, "workspace"),
        ({"workspace": 0}, "workspace"),
        ({"max_batch": -1}, "max_batch"),
    ],
)
def test_numbers_that_mean_nothing_are_refused_by_name(options: dict[str, int], field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} must be at least 1") as caught:
        axis_ranges(FACTS, BuildOptions(**options))
    assert caught.value.field == field


@pytest.mark.parametrize("field", ["max_batch", "max_chunks", "workspace"])
def test_numbers_that_no_graph_takes_are_refused_before_anything_is_counted(field: str) -> None:
    with pytest.raises(RequestError, match=rf"{field} must be at most \d+, not {10**18}") as caught:
        axis_ranges(FACTS, BuildOptions(**{field: 10**18}))
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (BuildOptions(max_batch=1000), "max_batch"),
        (BuildOptions(max_chunks=1000), "max_chunks"),
        (BuildOptions(sizes=AxisRange(32, 64, 8192)), "sizes"),
    ],
)
def test_what_the_graphs_themselves_do_not_take_is_refused(options: BuildOptions, field: str) -> None:
    side, rows = AxisRange(4, 8, 256), AxisRange(1, 2, 256)
    limits = {"B": AxisRange(1, 1, 64), "N": rows, "T": AxisRange(77, 77, 4928), "h": side, "w": side}
    graph = Artefact(STEP, "onnx", "fp16", (), (), limits)
    check_within(axis_ranges(FACTS, BuildOptions(max_batch=64, max_chunks=8)), graph)
    with pytest.raises(RequestError, match=f"{field}: the graph of step takes") as caught:
        check_within(axis_ranges(FACTS, options), graph)
    assert caught.value.field == field
