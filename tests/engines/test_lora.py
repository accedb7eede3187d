"""LoRA files in every layout, against what their formulas say, written out; and what is refused of them."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hollow import SD15, hollow
from safetensors.numpy import save_file

from clipskip.engines import lora
from clipskip.engines.errors import CheckpointError, NumericalError, UnsafeFileError, UnsupportedModelError
from clipskip.engines.weights import Origin

Arrays = dict[str, np.ndarray]
TO_K = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
PARAMETERS = {
    f"unet.{TO_K}.weight": (6, 768),
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0.weight": (6, 5),
    "unet.down_blocks.0.resnets.0.conv1.weight": (6, 4, 3, 3),
    "unet.down_blocks.0.attentions.0.proj_in.weight": (6, 4, 1, 1),
    **{f"text.encoder.layers.{n}.self_attn.q_proj.weight": (8, 8) for n in range(3)},
    **{f"text.encoder.layers.{n}.mlp.fc1.weight": (16, 8) for n in range(3)},
}
RANK = 2
Layout = Callable[[str, str], str]  # a parameter without ".weight", and "up" or "down": the name of the tensor


def kohya(layer: str, part: str) -> str:
    network, _, rest = layer.partition(".")
    start = "lora_unet" if network == "unet" else "lora_te_text_model"
    return f"{start}_{rest.replace('.', '_')}.lora_{part}.weight"


def _diffusers(layer: str) -> str:
    network, _, rest = layer.partition(".")
    return f"unet.{rest}" if network == "unet" else f"text_encoder.text_model.{rest}"


def diffusers(layer: str, part: str) -> str:
    return f"{_diffusers(layer)}.lora.{part}.weight"


def peft(layer: str, part: str) -> str:
    return f"{_diffusers(layer)}.lora_{'A' if part == 'down' else 'B'}.weight"


def peft_alone(layer: str, part: str) -> str:
    rest = _diffusers(layer).partition(".")[2]
    return f"base_model.model.{rest}.lora_{'A' if part == 'down' else 'B'}.weight"


def processors(layer: str, part: str) -> str:
    network, _, rest = layer.partition(".")
    head, _, last = rest.removesuffix(".0").rpartition(".")
    if network == "text":
        last = {"q_proj": "to_q"}.get(last, last)
        return f"text_encoder.text_model.{head}.{last}_lora.{part}.weight"
    return f"unet.{head}.processor.{last}_lora.{part}.weight"


def tensors(layout: Layout, parameters: Mapping[str, tuple[int, ...]] = PARAMETERS, seed: int = 0) -> Arrays:
    """Random ups and downs for the parameters, a convolution's with its kernel."""
    rng, made = np.random.default_rng(seed), {}
    for parameter, (outputs, *inputs) in parameters.items():
        layer = parameter.removesuffix(".weight")
        made[layout(layer, "down")] = rng.standard_normal((RANK, *inputs)).astype(np.float32)
        made[layout(layer, "up")] = rng.standard_normal((outputs, RANK, *[1] * (len(inputs) - 1))).astype(np.float32)
    return made


def written(folder: Path, arrays: Arrays, name: str = "style", metadata: dict[str, str] | None = None) -> Path:
    path = folder / f"{name}.safetensors"
    save_file(arrays, path, metadata)
    return path


def expected(layout: Layout, arrays: Arrays, parameter: str) -> np.ndarray:
    layer = parameter.removesuffix(".weight")
    up, down = (arrays[layout(layer, part)].astype(np.float64) for part in ("up", "down"))
    return np.einsum("or,ri->oi", up.reshape(-1, RANK), down.reshape(RANK, -1)).reshape(PARAMETERS[parameter])


@pytest.mark.parametrize("layout", [kohya, diffusers, peft, peft_alone, processors])
def test_a_lora_in_every_layout_changes_the_same_parameters(layout: Layout, tmp_path: Path) -> None:
    arrays = tensors(layout)
    read = lora.read(written(tmp_path, arrays), PARAMETERS)
    assert read.layers.keys() == PARAMETERS.keys()
    assert (read.name, read.unknown) == ("style", ())
    for parameter in PARAMETERS:
        assert np.allclose(read.delta(parameter), expected(layout, arrays, parameter), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, "BF16"])
def test_tensors_of_other_types_give_what_they_are_in_float32(dtype: Any, tmp_path: Path) -> None:
    arrays = tensors(kohya)
    wide = {name: (array.view(np.uint32) >> 16 << 16).view(np.float32) for name, array in arrays.items()}
    if dtype == "BF16":
        torch = pytest.importorskip("torch")
        from safetensors.torch import save_file as save

        path = tmp_path / "style.safetensors"
        save({name: torch.from_numpy(array).bfloat16() for name, array in wide.items()}, path)
    else:
        path = written(tmp_path, {name: array.astype(dtype) for name, array in arrays.items()})
        wide = {name: array.astype(dtype).astype(np.float32) for name, array in arrays.items()}
    reference = lora.read(written(tmp_path, wide, "wide"), PARAMETERS)
    read = lora.read(path, PARAMETERS)
    for parameter in PARAMETERS:
        assert np.array_equal(read.delta(parameter), reference.delta(parameter))


def test_alpha_divided_by_the_rank_is_the_strength(tmp_path: Path) -> None:
    arrays = tensors(kohya)
    plain = lora.read(written(tmp_path, arrays), PARAMETERS)
    alphas = {
        name.replace(".lora_up.weight", ".alpha"): np.ones((), np.float32) for name in arrays if "lora_up" in name
    }
    halved = lora.read(written(tmp_path, {**arrays, **alphas}, "halved"), PARAMETERS)
    for parameter in PARAMETERS:
        assert np.array_equal(halved.delta(parameter) * 2, plain.delta(parameter))


def test_alpha_is_also_read_where_peft_writes_it(tmp_path: Path) -> None:
    arrays = tensors(peft)
    plain = lora.read(written(tmp_path, arrays), PARAMETERS)
    said = {"unet.lora_alpha": 6, "unet.r": 2, "unet.alpha_pattern": {"conv1": 8}, "text_encoder.lora_alpha": 1}
    metadata = {"lora_adapter_metadata": json.dumps(said)}
    read = lora.read(written(tmp_path, arrays, "said", metadata), PARAMETERS)
    for parameter in PARAMETERS:
        factor = 4 if "conv1" in parameter else 3 if parameter.startswith("unet") else 0.5
        assert np.allclose(read.delta(parameter), factor * plain.delta(parameter), rtol=1e-6)


def test_the_file_that_peft_writes_beside_a_lora_is_read(tmp_path: Path) -> None:
    arrays = tensors(peft_alone)
    plain = lora.read(written(tmp_path, arrays), PARAMETERS)
    path = written(tmp_path, arrays, "adapter_model")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "r": 2, "use_rslora": True}))
    read = lora.read(path, PARAMETERS)
    for parameter in PARAMETERS:
        assert np.allclose(read.delta(parameter), 4 / 2**0.5 * plain.delta(parameter), rtol=1e-6)


def test_the_decomposition_of_a_kernel_is_multiplied_out(tmp_path: Path) -> None:
    rng, parameter = np.random.default_rng(1), "unet.down_blocks.0.resnets.0.conv1.weight"
    up, mid, down = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((6, 2, 1, 1), (2, 2, 3, 3), (2, 4, 1, 1))
    )
    layer = "lora_unet_down_blocks_0_resnets_0_conv1"
    arrays = {f"{layer}.lora_{part}.weight": each for part, each in (("up", up), ("mid", mid), ("down", down))}
    read = lora.read(written(tmp_path, arrays), PARAMETERS)
    reference = np.einsum("nmkl,in,mj->ijkl", mid, up[..., 0, 0], down[..., 0, 0])
    assert np.allclose(read.delta(parameter), reference, atol=1e-5)


def test_linear_layers_and_convolutions_of_one_pixel_are_alike(tmp_path: Path) -> None:
    arrays = tensors(kohya)
    other = {
        name: array[..., None, None] if array.ndim == 2 else array[..., 0, 0] if array.shape[2:] == (1, 1) else array
        for name, array in arrays.items()
        if "conv1" not in name
    }
    plain, read = (lora.read(written(tmp_path, each), PARAMETERS) for each in (arrays, other))
    for parameter in read.layers:
        assert np.array_equal(read.delta(parameter), plain.delta(parameter))


def test_loras_commute_bit_for_bit_and_weight_zero_changes_nothing(tmp_path: Path) -> None:
    first, second = (
        lora.read(written(tmp_path, tensors(kohya, seed=seed), f"style{seed}"), PARAMETERS) for seed in (1, 2)
    )
    for parameter, shape in PARAMETERS.items():
        base = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
        one, other = (lora.merged(base, parameter, pair) for pair in (
            [(first, 0.7), (second, -1.3)], [(second, -1.3), (first, 0.7)],
        ))  # fmt: skip
        assert np.array_equal(one, other)
        assert not np.array_equal(one, base)
        assert np.array_equal(lora.merged(base, parameter, [(first, 0.0), (second, 0.0)]), base)


def test_weight_minus_one_undoes_weight_one_to_rounding(tmp_path: Path) -> None:
    read = lora.read(written(tmp_path, tensors(kohya)), PARAMETERS)
    for parameter, shape in PARAMETERS.items():
        base = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
        back = lora.merged(lora.merged(base, parameter, [(read, 1.0)]), parameter, [(read, -1.0)])
        assert np.abs(back - base).max() < 2e-6


def test_a_weight_as_a_graph_keeps_it_is_merged_like_the_parameter(tmp_path: Path) -> None:
    read = lora.read(written(tmp_path, tensors(kohya)), PARAMETERS)
    names = [name for name in PARAMETERS if "q_proj" in name]
    bases = [np.random.default_rng(n).standard_normal((8, 8)).astype(np.float32) for n in range(3)]
    packed = np.concatenate([base.T for base in bases], 1)
    before = packed.copy()
    changed = lora.merged_stored(packed, Origin(tuple((name, (1, 0)) for name in names), 1), [(read, 0.5)])
    parts = [lora.merged(base, name, [(read, 0.5)]).T for base, name in zip(bases, names, strict=True)]
    assert np.array_equal(changed, np.concatenate(parts, 1))
    assert np.array_equal(packed, before)
    name = "unet.down_blocks.0.resnets.0.conv1.weight"
    kernel = np.random.default_rng(4).standard_normal(PARAMETERS[name]).astype(np.float16)
    last = Origin(((name, (0, 1, 2, 3)),)).transposed((0, 2, 3, 1))
    stored = lora.merged_stored(kernel.transpose(0, 2, 3, 1), last, [(read, 1.0)])
    assert np.array_equal(stored, lora.merged(kernel, name, [(read, 1.0)]).astype(np.float16).transpose(0, 2, 3, 1))


def test_a_weight_that_becomes_too_large_for_half_precision_is_an_error(tmp_path: Path) -> None:
    read = lora.read(written(tmp_path, tensors(kohya)), PARAMETERS)
    name = f"unet.{TO_K}.weight"
    with pytest.raises(NumericalError, match=r"to_k.weight with style is beyond float16: use a smaller weight"):
        lora.merged_stored(np.zeros((6, 768), np.float16), Origin(((name, (0, 1)),)), [(read, 1e6)])


def test_tensors_beyond_a_depth_are_counted(tmp_path: Path) -> None:
    read = lora.read(written(tmp_path, tensors(kohya)), PARAMETERS)
    assert [lora.beyond(read, kept) for kept in (3, 2, 0)] == [(0, 6), (2, 6), (6, 6)]
    assert read.changes("text")
    assert read.changes("unet")
    assert not read.changes("text2")


def test_names_of_no_use_are_listed(tmp_path: Path) -> None:
    more = {"lora_unet_nowhere.lora_up.weight": np.ones((2, 2), np.float32), "emb_params": np.ones((1,), np.float32)}
    read = lora.read(written(tmp_path, {**tensors(kohya), **more}), PARAMETERS)
    assert set(read.unknown) == more.keys()


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        ("LoHa", "lora_unet_x.hada_w1_a", "--lora"),
        ("LoKr", "lora_unet_x.lokr_w1", "--lora"),
        ("DoRA", "lora_unet_x.dora_scale", "--lora"),
        ("DoRA", "unet.x.lora_magnitude_vector", "--lora"),
        ("OFT", "lora_unet_x.oft_blocks", "are supported"),
        ("GLoRA", "lora_unet_x.a1.weight", "are supported"),
        (r"\(IA\)3", "lora_unet_x.on_input", "are supported"),
    ],
)
def test_adapters_of_other_kinds_are_refused_by_name(kind: str, name: str, hint: str, tmp_path: Path) -> None:
    path = written(tmp_path, {**tensors(kohya), name: np.ones((2, 2), np.float32)})
    with pytest.raises(UnsupportedModelError, match=f"is a {kind}, which is no plain LoRA") as caught:
        lora.read(path, PARAMETERS)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(("width", "family"), [(1024, "SD 2.x"), (2048, "SDXL"), (640, "another model")])
def test_a_lora_for_another_model_is_refused_by_its_context(width: int, family: str, tmp_path: Path) -> None:
    path = written(tmp_path, tensors(kohya, {f"unet.{TO_K}.weight": (6, width)}))
    said = f"is a LoRA for {family}: its layers read a context {width} wide, this model's 768"
    with pytest.raises(UnsupportedModelError, match=said):
        lora.read(path, PARAMETERS)


def test_a_lora_for_two_text_encoders_is_refused_where_there_is_one(tmp_path: Path) -> None:
    name = "lora_te2_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight"
    path = written(tmp_path, {**tensors(kohya), name: np.ones((8, 2), np.float32)})
    with pytest.raises(UnsupportedModelError, match="is a LoRA for SDXL: it changes two text encoders"):
        lora.read(path, PARAMETERS)


def test_a_tensor_that_fits_no_layer_is_named_with_both_shapes(tmp_path: Path) -> None:
    parameters = {"text.encoder.layers.0.mlp.fc1.weight": (32, 16)}
    with pytest.raises(UnsupportedModelError, match=r"another model: .*fc1.lora_up.weight \[32, 2\].* of \[16, 8\]"):
        lora.read(written(tmp_path, tensors(kohya, parameters)), PARAMETERS)


def test_a_file_of_which_nothing_fits_is_an_error_that_shows_its_names(tmp_path: Path) -> None:
    path = written(tmp_path, {"lora_unet_double_blocks_0.lora_up.weight": np.ones((2, 2), np.float32)})
    with pytest.raises(CheckpointError, match=r"none of the 1 tensors of .* belongs to a layer .*double_blocks"):
        lora.read(path, PARAMETERS)


def test_half_of_a_layer_is_an_error(tmp_path: Path) -> None:
    arrays = tensors(kohya)
    del arrays[kohya("text.encoder.layers.0.mlp.fc1", "up")]
    with pytest.raises(
        CheckpointError, match=r"style.safetensors: it is broken: .*fc1.lora_down.weight has no counterpart"
    ):
        lora.read(written(tmp_path, arrays), PARAMETERS)


def test_numbers_that_are_not_finite_are_an_error(tmp_path: Path) -> None:
    arrays = tensors(kohya)
    arrays[kohya(f"unet.{TO_K}", "up")][0, 0] = np.nan
    read = lora.read(written(tmp_path, arrays), PARAMETERS)
    with pytest.raises(CheckpointError, match=r"style: 768 numbers for unet.*to_k.weight are NaN or infinite"):
        lora.merged(np.zeros((6, 768), np.float32), f"unet.{TO_K}.weight", [(read, 1.0)])


def test_a_pickle_is_refused_and_so_is_what_is_no_file(tmp_path: Path) -> None:
    path = tmp_path / "style.pt"
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafeFileError, match=r"style\.pt: this is a pickle"):
        lora.read(path, PARAMETERS)
    with pytest.raises(CheckpointError, match="is missing"):
        lora.read(tmp_path / "none.safetensors", PARAMETERS)


def test_a_link_to_a_lora_is_followed(tmp_path: Path) -> None:
    path = written(tmp_path, tensors(kohya))
    link = tmp_path / "link.safetensors"
    link.symlink_to(path)
    assert lora.read(link, PARAMETERS).sha256 == lora.read(path, PARAMETERS).sha256


def test_a_checkpoint_among_loras_is_refused_from_its_header(tmp_path: Path) -> None:
    path = hollow(tmp_path / "model.safetensors", SD15)
    assert path.stat().st_size > 1 << 30
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"none of the 5 tensors of .*model.safetensors belongs to a layer"):
            lora.read(path, PARAMETERS)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_larger_than_any_lora_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, tensors(kohya))
    monkeypatch.setattr(lora, "LARGEST", 10_000)
    with pytest.raises(CheckpointError, match=r"style.safetensors: it has .* kB, and LoRAs are read up to 10.0 kB"):
        lora.read(path, PARAMETERS)


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, tensors(kohya))
    states = iter([(path.stat().st_size, 1), (path.stat().st_size, 2)])
    monkeypatch.setattr(lora, "state_of", lambda file: next(states))
    with pytest.raises(CheckpointError, match=r"style.safetensors: it changed while it was read"):
        lora.read(path, PARAMETERS)


@pytest.mark.parametrize("shape", [(0,), (2,)])
def test_an_alpha_that_is_not_one_number_is_an_error(shape: tuple[int, ...], tmp_path: Path) -> None:
    name = kohya(f"unet.{TO_K}", "up").replace("lora_up.weight", "alpha")
    path = written(tmp_path, {**tensors(kohya), name: np.ones(shape, np.float32)})
    with pytest.raises(
        CheckpointError, match=r"style.safetensors: it is broken: .*to_k.alpha \[\d\] is not one number"
    ):
        lora.read(path, PARAMETERS)


def test_numbers_of_eight_bits_are_refused_with_the_names_of_file_and_tensor(tmp_path: Path) -> None:
    shapes = {name: array.shape for name, array in tensors(kohya).items()}
    path = hollow(tmp_path / "small.safetensors", shapes, "F8_E4M3")
    with pytest.raises(UnsupportedModelError, match=r"small.safetensors: lora_unet_.*weight holds F8_E4M3 numbers"):
        lora.check(path, PARAMETERS)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ('{"unet.alpha_pattern": ["conv1"]}', "unet.alpha_pattern: must be an object, is a list"),
        ('{"unet.alpha_pattern": {"conv1": "8"}}', "unet.alpha_pattern.conv1: must be a number, is a string"),
        (f'{{"lora_alpha": {"9" * 400}}}', "lora_alpha: must be a number"),
        ('{"lora_alpha": NaN}', "NaN is not a number"),
        ('{"use_rslora": "yes"}', "use_rslora: must be a boolean"),
        ("[]", "the settings: must be an object"),
        (f'{{"x": "{"x" * (1 << 20)}"}}', "the file is larger than 1048576 bytes"),
    ],
)
def test_settings_of_peft_that_mean_nothing_are_refused_by_name(said: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, tensors(peft), metadata={"lora_adapter_metadata": said})
    with pytest.raises(CheckpointError, match=f"style.safetensors: the settings of PEFT .* damaged: {message}"):
        lora.read(path, PARAMETERS)
    path = written(tmp_path, tensors(peft_alone), "adapter_model")
    (tmp_path / "adapter_config.json").write_text(said)
    with pytest.raises(CheckpointError, match=message):
        lora.read(path, PARAMETERS)


def test_settings_of_peft_that_are_null_say_nothing(tmp_path: Path) -> None:
    said = {"lora_adapter_metadata": json.dumps({"lora_alpha": None, "alpha_pattern": None, "use_rslora": None})}
    read = lora.read(written(tmp_path, tensors(peft), metadata=said), PARAMETERS)
    assert {layer.alpha for layer in read.layers.values()} == {None}


def test_a_name_without_end_is_of_no_use_and_takes_no_time(tmp_path: Path) -> None:
    name = "lora_unet_" + "_hada_" * 20_000 + "!"
    assert lora.read(written(tmp_path, {**tensors(kohya), name: np.ones(1)}), PARAMETERS).unknown == (name,)
