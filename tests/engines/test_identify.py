"""A file of weights is told from its header: what it is, for which model, and what its makers wrote into it."""

from __future__ import annotations

import hashlib
import json
import struct
import time
from pathlib import Path

import pytest
from hollow import SD15, Shapes, hollow

from clipskip.engines.errors import CheckpointError, UnsafeFileError, UnsupportedModelError
from clipskip.engines.identify import examine

UNET = "model.diffusion_model.input_blocks.0.0.weight"
TO_K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"


def test_a_checkpoint_of_four_gigabytes_is_told_within_half_a_second(tmp_path: Path) -> None:
    path = hollow(tmp_path / "model.safetensors", SD15, "F32")
    began = time.process_time()
    facts = examine(path)
    assert time.process_time() - began < 0.5
    assert facts.size > 4e9
    assert (facts.kind, facts.family, facts.prediction, facts.missing) == ("checkpoint", "SD 1.x", None, ())
    assert facts.precisions == {"F32": sum(facts.parameters.values())}
    assert facts.parameters["text encoder"] == 160_000 * 768
    assert facts.tensors == {"text encoder": 1, "U-Net": 2, "VAE": 2}
    assert (facts.suggested_clip_skip, facts.suggested_because) == (None, "nothing in the file says one")


LORA: Shapes = {f"{TO_K}.lora_down.weight": (8, 768), f"{TO_K}.lora_up.weight": (320, 8)}
WIDE: Shapes = {f"{TO_K}.lora_down.weight": (16, 1024), f"{TO_K}.lora_up.weight": (320, 16)}


@pytest.mark.parametrize(
    ("shapes", "kind", "family"),
    [
        ({"cond_stage_model.model.ln_final.weight": (1024,), UNET: (320, 4, 3, 3)}, "checkpoint", "SD 2.x"),
        ({"conditioner.embedders.1.model.ln_final.weight": (1280,), UNET: (320, 4, 3, 3)}, "checkpoint", "SDXL"),
        ({UNET: (320, 4, 3, 3), "model.diffusion_model.x.attn2.to_k.weight": (320, 1024)}, "checkpoint", "SD 2.x"),
        (LORA, "LoRA", "SD 1.x"),
        (WIDE, "LoRA", "SD 2.x"),
        ({f"{TO_K}.lora_down.weight": (8, 2048)}, "LoRA", "SDXL"),
        ({"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768)}, "LoRA", "SDXL"),
        ({"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight": (8, 768)}, "LoRA", "SD 1.x"),
        ({"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 768)}, "LoRA", "SD 1.x"),
        ({f"{TO_K}.hada_w1_b": (4, 768), f"{TO_K}.hada_w1_a": (320, 4)}, "LyCORIS", "SD 1.x"),
        ({"emb_params": (8, 768)}, "textual inversion", "SD 1.x"),
        ({"<cat-toy>": (1024,)}, "textual inversion", "SD 2.x"),
        ({"foo": (2,)}, "unknown", None),
        ({"input_blocks.0.0.weight": (320, 4, 3, 3)}, "unknown", None),
        ({**LORA, f"{TO_K}.dora_scale": (320, 1)}, "DoRA", "SD 1.x"),
        ({"clip_l": (8, 768), "clip_g": (8, 1280)}, "textual inversion", "SDXL"),
        ({"first_stage_model.decoder.conv_in.weight": (512, 4, 3, 3)}, "VAE", "SD 1.x, SD 2.x or SDXL"),
        ({"decoder.conv_in.weight": (512, 16, 3, 3), "decoder.up.0.x": (1,)}, "VAE", "SD 3 or Flux"),
        ({"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3)}, "tiny VAE", "SD 1.x, SD 2.x or SDXL"),
        (
            {"encoder.layers.0.weight": (64, 3, 3, 3), "decoder.layers.0.weight": (64, 16, 3, 3)},
            "tiny VAE", "SD 3 or Flux",
        ),
        ({"down_blocks.0.resnets.0.x": (1,), "down_blocks.0.attn2.to_k.weight": (320, 768)}, "U-Net", "SD 1.x"),
        ({"encoder.layers.0.x": (1,), "embeddings.token_embedding.weight": (49408, 768)}, "text encoder", "SD 1.x"),
        ({"something": (1,), "else": (1,)}, "unknown", None),
        ({}, "unknown", None),
    ],
)  # fmt: skip
def test_kind_and_family_follow_from_names_and_widths(
    tmp_path: Path, shapes: Shapes, kind: str, family: str | None
) -> None:
    facts = examine(hollow(tmp_path / "x.safetensors", shapes))
    assert (facts.kind, facts.family) == (kind, family)


def test_what_a_checkpoint_lacks_and_what_is_special_about_it_is_said(tmp_path: Path) -> None:
    shapes: Shapes = {
        UNET: (320, 9, 3, 3),
        "model_ema.decay": (1,),
        "ztsnr": (0,),
        "cond_stage_model.transformer": (1,),
    }
    facts = examine(hollow(tmp_path / "x.safetensors", shapes, "BF16"))
    assert facts.missing == ("VAE",)
    assert facts.parameters["moving averages"] == 1
    assert facts.remarks == ("an inpainting model (9 channels)", "zero terminal SNR")


@pytest.mark.parametrize(
    ("shapes", "metadata", "yaml", "said"),
    [
        ({"v_pred": (0,)}, {"modelspec.prediction_type": "epsilon"}, "", ("v_prediction", "the marker v_pred")),
        ({}, {"modelspec.prediction_type": "V"}, "", ("v_prediction", "modelspec.prediction_type")),
        ({}, {"modelspec.prediction_type": "v"}, "parameterization: eps", ("epsilon", "the .yaml beside it")),
        ({}, {}, 'model:\n  params:\n    parameterization: "v"\n', ("v_prediction", "the .yaml beside it")),
        ({}, {}, "", (None, None)),
    ],
)
def test_what_a_model_predicts_is_said_with_where_it_says_so(
    tmp_path: Path, shapes: Shapes, metadata: dict[str, str], yaml: str, said: tuple[str | None, str | None]
) -> None:
    path = hollow(tmp_path / "x.safetensors", {UNET: (320, 4, 3, 3), **shapes}, metadata=metadata)
    if yaml:
        path.with_suffix(".yaml").write_text(yaml)
    facts = examine(path)
    assert (facts.prediction, facts.prediction_source) == said


@pytest.mark.parametrize(
    ("metadata", "suggested", "because"),
    [
        ({"ss_clip_skip": "2"}, 2, "ss_clip_skip says so"),
        ({"ss_clip_skip": "None"}, 1, "it was trained without clip skip (ss_clip_skip: None)"),
        ({"ss_clip_skip": "None", "modelspec.encoder_layer": "2"}, 2, "modelspec.encoder_layer says so"),
        ({"modelspec.encoder_layer": " 2 "}, 2, "modelspec.encoder_layer says so"),
        ({"modelspec.usage_hint": "DPM++ 2M, Clip Skip: 2, CFG 7"}, 2, "modelspec.usage_hint says so"),
        ({"modelspec.description": "works best at clip skip of 12."}, 12, "modelspec.description says so"),
        ({"modelspec.description": "no clip skip needed"}, None, "nothing in the file says one"),
        ({"ss_clip_skip": "0020"}, None, "nothing in the file says one"),
        ({"ss_clip_skip": "0002"}, 2, "ss_clip_skip says so"),
        ({"ss_clip_skip": "99"}, None, "nothing in the file says one"),
        ({"ss_clip_skip": "²"}, None, "nothing in the file says one"),
        ({"ss_clip_skip": "9" * 5000}, None, "nothing in the file says one"),
    ],
)
def test_a_clip_skip_is_suggested_with_its_reason(
    tmp_path: Path, metadata: dict[str, str], suggested: int | None, because: str
) -> None:
    facts = examine(hollow(tmp_path / "x.safetensors", LORA, metadata=metadata))
    assert (facts.suggested_clip_skip, facts.suggested_because) == (suggested, because)


def test_none_is_suggested_for_sd_2_which_has_one_depth_only(tmp_path: Path) -> None:
    facts = examine(hollow(tmp_path / "x.safetensors", WIDE, metadata={"ss_clip_skip": "2"}))
    assert (facts.suggested_clip_skip, facts.suggested_because) == (None, "SD 2.x has one depth only")


def test_a_lora_shows_ranks_alphas_and_how_much_is_for_which_network(tmp_path: Path) -> None:
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    entries = {
        f"{TO_K}.lora_down.weight": ("F16", [8, 768], bytes(8 * 768 * 2)),
        f"{TO_K}.alpha": ("F16", [], struct.pack("<e", 4)),
        f"{text}.lora_down.weight": ("BF16", [16, 768], bytes(16 * 768 * 2)),
        f"{text}.alpha": ("BF16", [], struct.pack("<f", 0.5)[2:]),
        f"{text}2.alpha": ("F32", [1], struct.pack("<f", 4)),
    }
    header, data = {}, b""
    for name, (dtype, shape, content) in entries.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    head = json.dumps({"__metadata__": {"ss_network_dim": "8", "ss_tag_frequency": "{}"}, **header}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(head).to_bytes(8, "little") + head + data)
    facts = examine(path)
    assert (facts.ranks, facts.alphas) == ((8, 16), (0.5, 4.0))
    assert facts.tensors == {"U-Net": 2, "text encoder": 3}
    assert facts.training == {"ss_network_dim": "8"}


def test_hashes_are_those_of_the_programs_that_show_them(tmp_path: Path) -> None:
    path = hollow(tmp_path / "x.safetensors", {"emb_params": (900, 768)})
    with path.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"not only zeros")
    data = path.read_bytes()
    body = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert examine(path).hashes == {}
    assert examine(path, hashes=True).hashes == {
        "SHA-256": hashlib.sha256(data).hexdigest(),
        "AutoV2": hashlib.sha256(data).hexdigest()[:10],
        "AutoV3": body[:12],
        "sshs_model_hash": body,
        "AutoV1": hashlib.sha256(data[0x100000:0x110000]).hexdigest()[:8],
    }


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (b"PK\x03\x04" + bytes(100), UnsafeFileError, "this is a pickle"),
        (b"GGUF" + bytes(100), UnsupportedModelError, "GGUF"),
        (b"version https://git-lfs.github.com/spec/v1\noid", CheckpointError, "Git LFS pointer"),
        (b"\x10\0\0\0\0\0\0\0{", CheckpointError, "cut off in its header"),
        (b"", CheckpointError, "empty"),
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_what_it_is(
    tmp_path: Path, content: bytes, error: type[CheckpointError], message: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        examine(path)
    assert (type(caught.value), caught.value.path) == (error, str(path))
    with pytest.raises(CheckpointError, match="is missing"):
        examine(tmp_path / "nothing.safetensors")
