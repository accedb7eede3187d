"""What a server tells of the LoRAs and embeddings that it was given: names for prompts, and no path of its machine."""

import lora_files
import numpy as np
import pytest
from safetensors.numpy import save_file
from serving import asked, serving

import clipskip
from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.service import Settings

SMALL = {"width": 64, "height": 64, "steps": 1, "seed": 7}


@pytest.fixture(scope="module")
def folder(sample_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    with clipskip.open(sample_store) as pipe:
        told = {"ss_clip_skip": "2", "ss_output_name": "other", "ss_tag_frequency": "x" * 5000}
        unet = {name: shape for name, shape in pipe._engines.changeable().items() if name.startswith("unet.")}
        lora_files.write(folder / "loras" / "below" / "Ink.safetensors", unet, metadata=told)
        width = pipe.model.width
    (folder / "loras" / "broken.safetensors").write_bytes(b"\0" * 9)
    (folder / "embeddings").mkdir()
    vectors = np.ones((3, width), np.float32)
    save_file({"emb_params": vectors}, folder / "embeddings" / "moody-sky.safetensors", {"ss_clip_skip": "2"})
    save_file({"emb_params": np.ones((1, width + 1), np.float32)}, folder / "embeddings" / "of-another.safetensors")
    return folder


@pytest.fixture(scope="module")
def pipe(sample_store, folder):
    with clipskip.open(sample_store, loras=folder / "loras", embeddings=folder / "embeddings") as pipe:
        yield pipe


@pytest.fixture
def get(sample_store, pipe):
    app = create_app(Models([sample_store], lambda path: pipe), Settings())
    return lambda path: asked(app, "GET", path).json()


def test_loras_have_the_names_that_prompts_call_and_what_their_files_say_but_at_length(get, folder):
    told = get("/sdapi/v1/loras")
    metadata = {"ss_clip_skip": "2", "ss_output_name": "other"}
    ink = {"name": "Ink", "alias": "Ink", "path": "Ink.safetensors", "metadata": metadata}
    assert told == [ink, {"name": "broken", "alias": "broken", "path": "broken.safetensors", "metadata": {}}]
    assert str(folder) not in str(told)


def test_embeddings_are_those_that_fit_the_model(get, pipe):
    row = {"step": None, "sd_checkpoint": None, "sd_checkpoint_name": None, "shape": pipe.model.width, "vectors": 3}
    assert get("/sdapi/v1/embeddings") == {"loaded": {"moody-sky": row}, "skipped": {}}


def test_the_page_is_told_of_both_with_the_clip_skip_that_they_were_trained_at(get, folder):
    late = folder / "loras" / "late.safetensors"
    late.write_bytes((folder / "loras" / "below" / "Ink.safetensors").read_bytes())
    try:
        loras = [("Ink", 2), ("broken", None), ("late", 2)]
        assert get("/v1/adapters?model=test-store-sample") == {
            "loras": [{"name": name, "clip_skip": depth} for name, depth in loras],
            "embeddings": [{"name": "moody-sky", "clip_skip": 2}],
        }
    finally:
        late.unlink()
    assert get("/v1/adapters?model=none")["error"]["code"] == "not_found"


def test_a_client_makes_a_picture_with_a_name_from_the_list(sample_store, pipe):
    with serving(sample_store, pipe) as client:
        name = client.get("/sdapi/v1/loras").json()[0]["name"]
        body = {**SMALL, "prompt": f"a ring <lora:{name}:1>", "sampler_name": "Euler"}
        made = client.post("/sdapi/v1/txt2img", json=body).json()["images"]
        detect = pytest.importorskip("sd_backend_client.api.detect", reason="sd-backend-client is no dependency")
        backend = detect.connect_to_backend(f"http://127.0.0.1:{client.port}")
        assert [each.name for each in backend.list_loras()] == ["Ink", "broken"]
        backend.disconnect()
        body["prompt"] = "a ring"
        assert client.post("/sdapi/v1/txt2img", json=body).json()["images"] != made
