"""A1111's routes on a running server: clients that people have, unmodified, and what they send, replayed."""

import base64
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO

import numpy as np
import PIL.Image
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import asked, until

from clipskip.metadata import read_request
from clipskip.serve.a1111_fields import KNOWN, SETTINGS
from clipskip.serve.app import create_app
from clipskip.serve.models import Models
from clipskip.serve.service import Settings

SMALL = {"prompt": "a ring", "width": 64, "height": 64, "steps": 2, "seed": 7}
LONG = {"width": 128, "height": 128, "steps": 900}  # until it is stopped
SAME = {**SMALL, "sampler": "Euler"}  # for the pipeline
HOW = "is no dependency of the suite: pip install it"


@pytest.fixture
def api(client):
    webuiapi = pytest.importorskip("webuiapi", reason=f"webuiapi {HOW}")
    return webuiapi.WebUIApi(port=client.port, sampler="Euler", steps=2)


@pytest.fixture
def backend(client):
    detect = pytest.importorskip("sd_backend_client.api.detect", reason=f"sd-backend-client {HOW}")
    backend = detect.connect_to_backend(f"http://127.0.0.1:{client.port}")
    yield backend
    backend.disconnect()


@pytest.fixture
def ask(client):
    """POST txt2img with a small picture and other fields; the answer, or its `detail` where a status is given."""

    def post(status=200, route="txt2img", **fields):
        answer = client.post(f"/sdapi/v1/{route}", json={**SMALL, **fields})
        assert answer.status_code == status, answer.text
        return answer.json() if status == 200 else answer.json()["detail"]

    return post


def pixels(image):
    opened = PIL.Image.open(BytesIO(base64.b64decode(image))) if isinstance(image, str) else image
    return np.asarray(opened.convert("RGB"))


def data(image):
    image.save(encoded := BytesIO(), "PNG")
    return base64.b64encode(encoded.getvalue()).decode()


def left_half():
    mask = PIL.Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask


def test_webuiapi_gets_by_override_settings_the_picture_of_clip_skip_2(api, pipe):
    made = api.txt2img(**SMALL, override_settings={"CLIP_stop_at_last_layers": 2})
    np.testing.assert_array_equal(pixels(made.image), pixels(pipe(clip_skip=2, **SAME).images[0]))
    assert (made.info["clip_skip"], made.info["all_seeds"]) == (2, [7])
    assert "Clip skip: 2" in made.info["infotexts"][0]
    assert made.image.info["parameters"] == made.info["infotexts"][0]
    assert api.get_options()["CLIP_stop_at_last_layers"] == 2
    other = api.txt2img(**SMALL, override_settings={"CLIP_stop_at_last_layers": 1})
    assert not np.array_equal(pixels(other.image), pixels(made.image))


def test_webuiapi_hears_our_sentence_about_a_clip_skip_of_14(api):
    with pytest.raises(RuntimeError) as told:
        api.txt2img(**SMALL, override_settings={"CLIP_stop_at_last_layers": 14})
    status, text = told.value.args
    assert status == 422
    assert json.loads(text)["detail"].startswith("clip_skip must be 1..13, not 14: it counts from 1 (the last layer")


def test_webuiapi_paints_under_a_mask_and_reads_a_picture_back(api, pipe):
    first = api.txt2img(**SMALL)
    how = {"inpainting_fill": 1, "inpaint_full_res": False, "mask_blur": 0, "denoising_strength": 1}
    made = api.img2img([first.image], mask_image=left_half(), **{**SMALL, "prompt": "a star", **how})
    change = np.abs(pixels(made.image).astype(int) - pixels(first.image))
    assert change[:, 32:].max() == 0
    assert change[:, :32].mean() > 5
    assert read_request(made.image).mask.startswith("sha256:")
    assert api.png_info(first.image).info == first.info["infotexts"][0]
    assert api.get_progress()["state"]["job_count"] == 0


@pytest.mark.parametrize(("sampler", "eta"), [("DDIM", 1.0), ("Euler a", None), ("Euler", None)])
def test_webuiapis_eta_of_1_counts_where_it_does_in_a1111(api, pipe, sampler, eta):
    made = api.txt2img(**SMALL, sampler_name=sampler)
    same = pipe(**{**SMALL, "sampler": sampler, "eta": eta}).images[0]
    np.testing.assert_array_equal(pixels(made.image), pixels(same))
    assert not any("eta" in note or "s_churn" in note for note in made.info["warnings"])


def test_sd_backend_client_finds_the_server_makes_a_picture_and_lists(backend, pipe):
    body = pytest.importorskip("sd_backend_client.api.webui.diffusion_request_body").DiffusionRequestBody
    settings = {"CLIP_stop_at_last_layers": 2.0}
    job = backend.submit_txt2img(body(**SMALL, sampler="euler", scheduler="automatic", override_settings=settings))
    made = job.wait(60)
    np.testing.assert_array_equal(pixels(made.images[0]), pixels(pipe(clip_skip=2, **SAME).images[0]))
    assert (made.seeds, made.raw_info.clip_skip) == ([7], 2)
    assert backend.get_capabilities().scheduler
    assert [each.name for each in backend.list_checkpoints()] == ["test-store-sample"]
    assert "euler_ancestral" in [each.name for each in backend.list_samplers()]
    assert "karras" in [each.name for each in backend.list_schedulers()]
    assert (backend.list_vaes(), backend.list_loras(), backend.list_hypernetworks()) == ([], [], [])
    assert [each.name for each in backend.get_upscalers()] == ["Lanczos", "Nearest"]
    assert (backend.get_styles(), backend.get_script_info()) == ([], [])
    assert "Latent" in backend.get_latent_upscale_modes()


def test_sd_backend_client_cancels(backend):
    handles = pytest.importorskip("sd_backend_client.api.shared_data.generation_handle")
    body = pytest.importorskip("sd_backend_client.api.webui.diffusion_request_body").DiffusionRequestBody
    job = backend.submit_txt2img(body(**{**SMALL, **LONG}, sampler="euler"))
    until(lambda: (job.poll().progress or 0) > 0.011)
    assert job.poll().preview.size == (128, 128)
    assert job.cancel()
    with pytest.raises(handles.GenerationError) as told:
        job.wait(60)
    assert told.value.status is handles.GenerationStatus.CANCELLED


def test_open_webuis_requests(client, pipe):
    head = {"authorization": ""}
    options = client.get("/sdapi/v1/options", headers=head).json()
    models = client.get("/sdapi/v1/sd-models", headers={"authorization": "Basic Og=="}).json()
    assert models[0].keys() >= {"title", "model_name", "hash", "sha256", "filename", "config"}
    assert options["sd_model_checkpoint"] == models[0]["title"]
    options["sd_model_checkpoint"] = models[0]["model_name"]
    assert client.post("/sdapi/v1/options", json={**options, "new_in_1_11": True}, headers=head).json() is None
    body = {**SMALL, "batch_size": 2, "negative_prompt": "blurry", "cfg_scale": 5, "sampler_name": "Euler"}
    made = client.post("/sdapi/v1/txt2img", json=body, headers=head).json()
    same = pipe(**SAME, cfg=5, negative_prompt="blurry", batch=2)
    for image, alone in zip(made["images"], same.images, strict=True):
        np.testing.assert_array_equal(pixels(image), pixels(alone))
    assert client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2


def test_sillytaverns_requests_and_its_secret_stays_where_it_is(client, pipe, caplog):
    caplog.set_level(logging.DEBUG)
    secret = {"url": f"http://127.0.0.1:{client.port}", "auth": "user:hunter2", "hunter3": "hunter2"}
    for name in ("options", "sd-models", "samplers", "schedulers", "upscalers", "latent-upscale-modes", "sd-vae"):
        assert client.get(f"/sdapi/v1/{name}").status_code == 200
    title = client.get("/sdapi/v1/sd-models").json()[0]["title"]
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": title}).status_code == 200
    idle = client.get("/sdapi/v1/progress").json()
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    body = {**SMALL, **secret, "negative_prompt": "", "sampler_name": "Euler", "scheduler": "Automatic", "cfg_scale": 7}
    body |= {"override_settings": {"CLIP_stop_at_last_layers": 2}, "override_settings_restore_afterwards": True}
    body |= {"clip_skip": 2, "save_images": True, "send_images": True, "do_not_save_grid": False, "enable_hr": False}
    body |= {"restore_faces": False, "hr_upscaler": "Latent", "hr_scale": 2, "denoising_strength": 0.7}
    answer = client.post("/sdapi/v1/txt2img", json=body)
    made = answer.json()
    np.testing.assert_array_equal(pixels(made["images"][0]), pixels(pipe(clip_skip=2, **SAME).images[0]))
    ignored = json.loads(made["info"])["extra_generation_params"]["Ignored"]
    assert ignored == "url, auth, hunter3, save_images"
    assert "hunter2" not in answer.text
    assert "hunter2" not in caplog.text
    assert "auth" not in made["parameters"]


def test_override_settings_count_for_their_own_request_unless_they_are_kept(client, ask):
    skip = {"CLIP_stop_at_last_layers": 3, "emphasis": "No norm", "quicksettings": 1}
    made = json.loads(ask(override_settings=skip)["info"])
    assert (made["clip_skip"], made["extra_generation_params"]) == (3, {"Ignored": "override_settings.quicksettings"})
    assert json.loads(ask()["info"])["clip_skip"] == 2
    ask(override_settings=skip, override_settings_restore_afterwards=False)
    now = client.get("/sdapi/v1/options").json()
    assert (now["CLIP_stop_at_last_layers"], now["emphasis"]) == (3, "No norm")
    assert json.loads(ask()["info"])["clip_skip"] == 3
    assert json.loads(ask(clip_skip=5)["info"])["clip_skip"] == 5
    back = {"CLIP_stop_at_last_layers": 2, "emphasis": "Original"}
    assert client.post("/sdapi/v1/options", json=back).status_code == 200
    assert json.loads(ask()["info"])["clip_skip"] == 2


def test_whole_numbers_may_be_written_as_floats_and_a_schedule_in_a_samplers_name(ask):
    floats = ask(width=64.0, steps=2.0, seed=7.0, batch_size=1.0, sampler_name="DPM++ 2M Karras", scheduler="Automatic")
    assert floats["images"] == ask(sampler_name="DPM++ 2M", scheduler="karras")["images"]
    assert json.loads(ask(clip_skip=2.0, override_settings={"eta_noise_seed_delta": 3.0})["info"])["warnings"] == []


def test_a_refused_request_keeps_no_setting(client, ask):
    keep = {"override_settings_restore_afterwards": False}
    ask(422, override_settings={"CLIP_stop_at_last_layers": 14}, **keep)
    ask(422, override_settings={"CLIP_stop_at_last_layers": 4}, width=9, **keep)
    assert client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2


def test_options_refuse_what_no_request_could_have(client):
    for body in (
        {"CLIP_stop_at_last_layers": 14},
        {"emphasis": 3},
        {"sd_model_checkpoint": "v1-5"},
        {"sd_vae": "a.pt"},
    ):
        assert client.post("/sdapi/v1/options", json=body).status_code == 422
    assert client.get("/sdapi/v1/options").json()["CLIP_stop_at_last_layers"] == 2


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"override_settings": {"CLIP_stop_at_last_layers": 14}}, "clip_skip must be 1..13, not 14"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 0}}, "CLIP_stop_at_last_layers must be a whole"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2.7}}, "CLIP_stop_at_last_layers must be a whole number"),
        ({"override_settings": {"CLIP_stop_at_last_layers": "2"}}, "not '2'"),
        ({"clip_skip": 2.5}, "clip_skip must be a whole number from 1 on, not 2.5"),
        ({"override_settings": {"CLIP_stop_at_last_layers": 2}, "clip_skip": 3}, "clip_skip is 3, and"),
        ({"override_settings": {"sd_model_checkpoint": "v1-5"}}, "there are: test-store-sample"),
        ({"override_settings": {"sd_vae": "kl-f8.pt"}}, "sd_vae is not supported"),
        ({"override_settings": [1]}, "must be an object"),
        ({"restore_faces": True}, "restore_faces is not supported"),
        ({"tiling": True}, "tiling is not supported"),
        ({"styles": ["mine"]}, "styles is not supported"),
        ({"script_name": "X/Y/Z plot"}, "script_name is not supported"),
        ({"seed_resize_from_w": 512}, "seed_resize_from_w is not supported"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True, {}]}}}, "alwayson_scripts.ADetailer is not supported"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"image": ""}]}}}, "alwayson_scripts.ControlNet is not"),
        ({"alwayson_scripts": 1}, "must be an object"),
        ({"enable_hr": True, "hr_prompt": "a star"}, "hr_prompt is not supported"),
        ({"enable_hr": True, "hr_sampler_name": "LMS"}, "hr_sampler_name is not supported"),
        ({"sampler_name": "DPM adaptive"}, "sampler must be one of"),
        ({"infotext": "hello"}, "infotext has no line of settings"),
        ({"batch_size": "2"}, "batch_size must be a whole number"),
    ],
)
def test_what_is_asked_for_and_not_supported_is_a_422_that_names_it(ask, fields, told):
    assert told in ask(422, **fields)


def test_what_is_off_in_any_clients_words_is_let_pass(ask):
    off = {"restore_faces": False, "tiling": None, "styles": [], "script_name": "None", "script_args": [1], "eta": None}
    off |= {"seed_resize_from_h": 0, "seed_resize_from_w": -1, "subseed": -1, "subseed_strength": 0.0, "s_tmax": 0}
    off |= {"alwayson_scripts": {"ADetailer": {"args": [False, {}]}, "ControlNet": {"args": []}, "x": {}}}
    off |= {"enable_hr": False, "hr_prompt": "a star", "hr_resize_x": 9, "refiner_checkpoint": "None", "comments": {}}
    off |= {"override_settings": {"sd_vae": "Automatic", "sd_model_checkpoint": None}, "force_task_id": "task(1)"}
    off |= {"image_cfg_scale": 1.5, "initial_noise_multiplier": 1}
    made = ask(clip_skip=2, **off)
    assert json.loads(made["info"])["warnings"] == []
    assert made["images"] == ask(sampler_index="Euler", send_images=True)["images"]
    assert ask(send_images=False)["images"] == []


def test_a_model_is_chosen_by_its_title_its_name_or_its_hash(client, ask):
    row = client.get("/sdapi/v1/sd-models").json()[0]
    for name in (row["title"], row["model_name"].upper(), row["hash"], row["sha256"], "sample"):
        ask(override_settings={"sd_model_checkpoint": name})


def test_hires_has_a_size_by_factor_by_sides_or_by_one_side(ask):
    for fields in ({}, {"hr_resize_x": 128, "hr_resize_y": 128}, {"hr_resize_x": 128}):
        made = ask(enable_hr=True, denoising_strength=0.5, hr_sampler_name="Use same sampler", **fields)
        assert pixels(made["images"][0]).shape == (128, 128, 3)


def test_an_infotext_fills_what_the_request_itself_leaves_open(client, pipe):
    text = "a star\nNegative prompt: blurry\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: 9, Size: 64x64, "
    text += "Clip skip: 2, RNG: CPU"
    answer = client.post("/sdapi/v1/txt2img", json={"infotext": text, "seed": 7})
    same = pipe(
        "a star", negative_prompt="blurry", steps=3, sampler="Euler", cfg=4, seed=7, width=64, height=64, clip_skip=2
    )
    np.testing.assert_array_equal(pixels(answer.json()["images"][0]), pixels(same.images[0]))


def test_an_interrupted_request_ends_with_what_it_had_made(client, ask):
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ask, **LONG)
        until(lambda: client.get("/sdapi/v1/progress").json()["state"]["sampling_step"] > 3)
        running = client.get("/sdapi/v1/progress?skip_current_image=true").json()
        assert (running["current_image"], running["state"]["sampling_steps"]) == (None, 900)
        assert 0 < running["progress"] < 1
        assert client.post("/sdapi/v1/interrupt").json() == {}
        made = waiting.result()
    assert pixels(made["images"][0]).shape == (128, 128, 3)
    assert "interrupted: the pictures are not finished" in json.loads(made["info"])["warnings"]
    assert "parameters" not in PIL.Image.open(BytesIO(base64.b64decode(made["images"][0]))).info
    assert client.get("/sdapi/v1/progress").json()["progress"] == 0
    assert client.post("/sdapi/v1/skip").json() == {}


@pytest.mark.parametrize("image", ["http://127.0.0.1/a.png", "/etc/passwd", "file:///etc/passwd", "", 3, "x" * 41])
def test_no_address_and_no_path_is_opened(client, ask, image):
    assert "init_images" in ask(422, "img2img", init_images=[image]) or isinstance(image, str)
    assert client.post("/sdapi/v1/png-info", json={"image": image}).status_code == 422


def test_without_a_client_a_mask_paints_and_the_picture_tells_its_settings(client, ask, pipe):
    first = pipe(**SAME).images[0]
    how = {"inpainting_fill": 1, "inpaint_full_res": False, "mask_blur": 0, "denoising_strength": 1}
    made = ask(200, "img2img", prompt="a star", init_images=[data(first)], mask=data(left_half()), **how)
    painted = pixels(made["images"][0])
    np.testing.assert_array_equal(painted[:, 32:], pixels(first)[:, 32:])
    assert np.abs(painted[:, :32].astype(int) - pixels(first)[:, :32]).mean() > 5
    told = client.post("/sdapi/v1/png-info", json={"image": made["images"][0]}).json()
    assert told["info"] == json.loads(made["info"])["infotexts"][0]
    assert (told["parameters"]["Prompt"], told["parameters"]["Seed"]) == ("a star", "7")
    assert told["items"].keys() == {"parameters", "clipskip"}


def test_img2img_takes_one_picture_and_numbers_of_choices(ask, pipe):
    image = pipe(**SAME).images[0]
    assert "one picture" in ask(422, "img2img", init_images=[])
    assert "one picture" in ask(422, "img2img")
    assert "0: Just resize" in ask(422, "img2img", init_images=[data(image)], resize_mode=4)
    made = ask(200, "img2img", init_images=[f"data:image/png;base64,{data(image)}"], denoising_strength=0.5)
    same = pipe(**SAME, image=image, strength=0.5)
    np.testing.assert_array_equal(pixels(made["images"][0]), pixels(same.images[0]))
    assert "init_images" not in made["parameters"]


def test_png_info_of_a_picture_without_settings_is_empty(client):
    told = client.post("/sdapi/v1/png-info", json={"image": data(PIL.Image.new("RGB", (8, 8)))}).json()
    assert told == {"info": "", "items": {}, "parameters": {}}


def test_lists_of_what_there_is_none_of_have_the_right_shape(client):
    shapes = {"loras": [], "embeddings": {"loaded": {}, "skipped": {}}, "scripts": {"txt2img": [], "img2img": []}}
    shapes |= {"hypernetworks": [], "prompt-styles": [], "face-restorers": [], "realesrgan-models": [], "cmd-flags": {}}
    for name, shape in shapes.items():
        assert client.get(f"/sdapi/v1/{name}").json() == shape
    assert client.get("/sdapi/v1/memory").json().keys() == {"ram", "cuda"}
    for name in ("checkpoints", "vae", "loras"):
        assert client.post(f"/sdapi/v1/refresh-{name}").json() is None


TEXT = st.text("a1 /:,\0\N{SNOWMAN}\ud800", max_size=9)  # halves of characters as well
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(sorted({*KNOWN, *SETTINGS, "image", "sd_model_checkpoint", "sd_vae", "\ud800"}))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["txt2img", "img2img", "options", "png-info"]), st.dictionaries(NAMES, ANYTHING, max_size=6))
def test_no_body_is_our_fault(sample_store, pipe, route, fields):
    tight = Settings(max_pixels=64 * 64, max_calls=2)
    app = create_app(Models([sample_store], lambda path: pipe), tight)
    body = json.dumps({**SMALL, "steps": 1, **fields, "override_settings": fields.get("override_settings", fields)})
    answer = asked(app, "POST", f"/sdapi/v1/{route}", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (200, 422), (fields, answer.text)
    if answer.status_code == 422:
        assert answer.json().keys() >= {"error", "detail", "body", "errors"}
