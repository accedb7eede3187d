# clipskip. GNU make 4.3 or newer. make decides order only: what is stale is decided by content, inside the tool.

SPACE     := $(subst ,, )
MODEL     ?= export/sample
TARGET    ?= onnxruntime
PRECISION ?= $(if $(filter onnxruntime,$(TARGET)),fp32,fp16)
SKIPS     ?= all
VAE       ?=
TINY_VAE  ?=
LORA      ?=
PREDICTION ?=
TRAINED_AT := 2# of export/sample
RECOMMENDED_CLIP_SKIP ?= $(if $(filter export/sample,$(MODEL)),$(TRAINED_AT))
SIZES     ?=
MAX_BATCH ?=
MAX_CHUNKS ?=
COMPUTE_CAPABILITY ?=
WORKSPACE ?=
DEVICE    ?=
PICTURES  ?=
PROMPT    ?=
SIZE      ?=
GPU_TARGET ?= onnxruntime-cuda
PEER      ?= $(if $(CLIPSKIP_GPU_STORE),,$(MODEL))
OUT       ?= build/$(subst ^, ,$(patsubst %.safetensors,%,$(notdir $(patsubst %/,%,$(subst $(SPACE),^,$(MODEL))))))
PYTHON    ?= python3

VENV     := .venv
BIN      := $(VENV)/bin
quote     = '$(subst ','\'',$(1))'# for the shell: paths may hold spaces and quotes
CLIPSKIP := $(BIN)/clipskip
SAMPLE    = $(CLIPSKIP) export export/sample --recommended-clip-skip $(TRAINED_AT) --out
PIP      := python -m pip install --quiet --disable-pip-version-check
INSTALL  := build/install
GPU_BIN   = $(if $(filter onnxruntime%,$(GPU_TARGET)),.venv-gpu,$(VENV))/bin
GPU_STORE = $(or $(CLIPSKIP_GPU_STORE),$(OUT)-gpu)
REPORT   := build/report-gpu

TARGETS  := onnxruntime onnxruntime-cuda tensorrt tensorrt-rtx
known     = $(if $(filter $(2),$(TARGETS)),,$(error $(1)=$(2): there are $(TARGETS)))

.DEFAULT_GOAL := help
.PHONY: driver target ray help setup demo serve serve-ray test test-page test-ray fuzz check-install test-gpu test-gpu-onnxruntime bench-gpu report-gpu check lock format export engines verify bench bench-peers soak performance prove prove-recommend clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  MODEL="$(call quote,$(MODEL))"        a Stable Diffusion 1.x model: a diffusers folder, or one .safetensors"
	@echo "  OUT="$(call quote,$(OUT))"             the engine store that is made from it"
	@echo "  TARGET=$(TARGET)        onnxruntime, tensorrt-rtx or tensorrt"
	@echo "  PRECISION=$(PRECISION)            fp32 or fp16 (TensorRT needs fp16)"
	@echo "  SKIPS=$(SKIPS)                 the clip skips to export and build, such as 1,2 (13 of them: all)"
	@echo "  VAE=                      another VAE for MODEL: a file, or a diffusers folder"
	@echo "  TINY_VAE=                 TAESD as a second decoder: a file, or a diffusers folder"
	@echo "  PREDICTION=               epsilon or v_prediction, where MODEL does not say it"
	@echo "  RECOMMENDED_CLIP_SKIP=    what requests get that say nothing"
	@echo "and for TARGET=tensorrt-rtx and TARGET=tensorrt:"
	@echo "  SIZES=                    pixels: 512, or 256-512-768 (default: 0.5, 1 and 1.5 times the model's own size)"
	@echo "  MAX_BATCH=                images in one call of the network (default: 4)"
	@echo "  MAX_CHUNKS=               prompt length in chunks of 75 tokens (default: 3)"
	@echo "  COMPUTE_CAPABILITY=       tensorrt-rtx only: such as 8.9, or several (default: 8.6 8.9 12.0)"
	@echo "  WORKSPACE=                MiB on the GPU that the builder may use"
	@echo "  DEVICE=                   tensorrt only: the number of the GPU to build on (default: 0)"
	@echo "SIZES=512 MAX_BATCH=1 MAX_CHUNKS=1 makes static engines: one picture of 512x512 at a time."
	@echo "and for prove:"
	@echo "  PICTURES=                 a folder of captioned pictures (name.png, name.txt), for the clip skip that MODEL wants"
	@echo "  PROMPT=                   of its sheet; SIZE= such as 512x512, of the sheet's pictures"
	@echo "and for bench-gpu and report-gpu:"
	@echo "  GPU_TARGET=$(GPU_TARGET)  or tensorrt-rtx, tensorrt"
	@echo "  CLIPSKIP_GPU_STORE=       a store of fp16 graphs in place of MODEL; test-gpu takes it as well"
	@echo "  PEER=                     the diffusers folder that it was made from, for PyTorch's side of bench-gpu"

setup: $(VENV)/installed ## make .venv with everything that the other targets need

$(VENV)/installed: pyproject.toml constraints.txt requirements.lock
	@echo "installing into $(VENV), PyTorch included: a minute or two"
	$(PYTHON) -m venv $(VENV)
ifdef LOCKED
	$(BIN)/$(PIP) --no-deps --require-hashes -r requirements.lock
	$(BIN)/$(PIP) -c constraints.txt torch  # whose CPU build has another hash wherever it comes from
	$(BIN)/$(PIP) --no-deps --no-build-isolation -e .
else
	$(BIN)/$(PIP) -c constraints.txt -e '.[dev]'
endif
	touch $@

CIRCLE = a large red circle on a green background
OTHERS = a small red square on a blue background,a large purple ring on a striped yellow background,a large green triangle on a white background
DEMO   = $(CLIPSKIP) generate build/sample "$(CIRCLE)" --seed 2 --cfg 3 --overwrite

demo: setup ## checkpoint -> engines -> pictures, on the CPU
	$(SAMPLE) build/sample
	$(DEMO) --out build/demo/picture.png
	$(subst generate,grid,$(DEMO)) --steps 12 --x clip_skip=1,2,3,5,8,12,13 --y "prompt=$(CIRCLE),$(OTHERS)" --out build/demo/clip-skip.png
	@echo "Look at the pictures in build/demo, then try"
	@echo "  $(CLIPSKIP) generate build/sample '/render /clipskip:2 /seed:2 /guidance:3 a small red square on a blue background' --out build/demo"
	@echo "  $(CLIPSKIP) inspect build/sample"
	@echo "  make export MODEL=path/to/your/checkpoint"

serve: setup export ## OUT over HTTP, at http://127.0.0.1:7860, with its page
	$(CLIPSKIP) serve $(call quote,$(OUT))

serve-ray: setup ray ## the sample model on Ray Serve: two replicas on the CPU; docs/serve-ray.yaml
	$(SAMPLE) build/sample
	RAY_USAGE_STATS_ENABLED=0 $(BIN)/serve run docs/serve-ray.yaml

test: setup ## the whole test suite, on the CPU
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-gpu: setup ## build for the NVIDIA GPU that is here and compare everything with the CPU
	$(BIN)/python -m pytest -m gpu tests/gpu

test-gpu-onnxruntime: driver .venv-gpu/installed ## the same for ONNX Runtime on CUDA; installs its GPU build in .venv-gpu (4 GB)
	.venv-gpu/bin/python -m pytest -m gpu tests/gpu -k onnxruntime

driver:  # before gigabytes are installed for it
	@nvidia-smi -L > /dev/null 2>&1 || { echo "no NVIDIA driver answers (nvidia-smi -L), and this needs one: make help lists what does not" >&2; exit 1; }
	$(call known,GPU_TARGET,$(GPU_TARGET))

target:  # before minutes of export
	$(call known,TARGET,$(TARGET))
	$(if $(filter fp32,$(PRECISION)),$(if $(filter onnxruntime,$(TARGET)),,$(error PRECISION=fp32: $(TARGET) takes fp16)))

.venv-gpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/$(PIP) -c constraints.txt -e '.[dev]'
	.venv-gpu/bin/python -m pip uninstall --quiet --yes onnxruntime
	.venv-gpu/bin/$(PIP) -c constraints.txt -e '.[gpu]'
	touch $@

bench-gpu: driver $(GPU_BIN:bin=installed) ## MODEL on the NVIDIA GPU that is here, in every form, and PyTorch beside it: one table
ifndef CLIPSKIP_GPU_STORE
	$(GPU_BIN)/clipskip export $(call quote,$(MODEL)) --out $(call quote,$(GPU_STORE)) --precision fp16 --skips $(SKIPS)
	$(GPU_BIN)/clipskip build $(call quote,$(GPU_STORE)) --target $(GPU_TARGET)
endif
	$(GPU_BIN)/python -m clipskip.bench.gpu $(call quote,$(GPU_STORE)) --target $(GPU_TARGET) $(if $(PEER),--checkpoint $(call quote,$(PEER)))

report-gpu: driver $(GPU_BIN:bin=installed) ## one file to send: what this machine has, whether it passes, and how fast it is
	rm -rf $(REPORT) && mkdir -p $(REPORT)
	-$(GPU_BIN)/clipskip doctor --json > $(REPORT)/doctor.json
	-$(GPU_BIN)/python -m pytest -m gpu tests/gpu --junitxml=$(REPORT)/tests.xml > $(REPORT)/tests.txt 2>&1
	-$(MAKE) -s -f $(firstword $(MAKEFILE_LIST)) bench-gpu > $(REPORT)/bench.txt 2>&1
	$(GPU_BIN)/python tests/gpu/report.py $(REPORT)

test-page: setup ## the page of `clipskip serve` in Chromium (with chromedriver), and docs/serve-page.png; installs selenium
	$(BIN)/python -c 'import selenium' 2> /dev/null || $(BIN)/$(PIP) -c constraints.txt -e '.[page]'
	$(BIN)/python -m pytest tests/page -rs

test-ray: setup ray ## the server on Ray Serve: two replicas, mixed requests, kill -9 of one under load; installs Ray (400 MB)
	CLIPSKIP_TEST_RAY=1 $(BIN)/python -m pytest tests/ray_serve -rs

ray:
	$(BIN)/python -c 'import ray.serve' 2> /dev/null || $(BIN)/$(PIP) -c constraints.txt -e '.[ray]'

fuzz: setup ## the tests of random input for much longer than `make test` takes them
	FUZZ=1 $(BIN)/python -m pytest -n 2 -m hypothesis

check-install: setup ## the wheel in empty environments, at the newest and the lowest versions that it allows
	$(SAMPLE) build/test-store-sample
	rm -rf $(INSTALL)
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir $(INSTALL) .
	touch $(INSTALL)/newest.txt
	$(BIN)/python tests/lowest.py > $(INSTALL)/lowest.txt
	$(MAKE) -j 2 -f $(firstword $(MAKEFILE_LIST)) $(INSTALL)/newest $(INSTALL)/lowest

$(INSTALL)/%: $(INSTALL)/%.txt
	$(PYTHON) -m venv $@
	$@/bin/$(PIP) -c $< "$$(echo $(INSTALL)/*.whl)[cpu]"
	$@/bin/python -I tests/installed.py build/test-store-sample

lock: setup ## requirements.lock anew: what is in .venv, with the hashes of its files
	$(PYTHON) -m venv build/uv
	build/uv/bin/$(PIP) uv
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip --exclude torch > build/frozen.txt
	echo "# What CI installs (LOCKED=1), torch excepted: made by \`make lock\` from an environment of Python 3.11 on Linux." > requirements.lock
	build/uv/bin/uv pip compile --quiet --no-deps --no-annotate --no-header --generate-hashes build/frozen.txt >> requirements.lock

check: setup ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types && mkdir -p build/types/clipskip  # the package as it is installed, by links to the tree itself
	cd build/types/clipskip && ln -s ../../../runtime/* ../../../engines ../../../export ../../../bench .
	MYPYPATH=build/types $(BIN)/mypy -p clipskip

format: setup ## put the source into ruff's shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

export: setup ## MODEL -> graphs in OUT
	$(CLIPSKIP) export $(call quote,$(MODEL)) --out $(call quote,$(OUT)) --precision $(PRECISION) --skips $(SKIPS) $(if $(VAE),--vae $(call quote,$(VAE))) \
	  $(if $(TINY_VAE),--tiny-vae $(call quote,$(TINY_VAE))) $(if $(LORA),--lora $(call quote,$(LORA))) \
	  $(addprefix --prediction=,$(PREDICTION)) $(addprefix --recommended-clip-skip=,$(RECOMMENDED_CLIP_SKIP))

engines: target export ## MODEL -> engines for TARGET in OUT
	$(CLIPSKIP) build $(call quote,$(OUT)) --target $(TARGET) $(addprefix --sizes=,$(SIZES)) $(addprefix --max-batch=,$(MAX_BATCH)) \
	  $(addprefix --max-chunks=,$(MAX_CHUNKS)) $(addprefix --compute-capability=,$(COMPUTE_CAPABILITY)) \
	  $(addprefix --workspace=,$(WORKSPACE)) $(addprefix --device=,$(DEVICE))

verify: setup ## check every byte of OUT
	$(CLIPSKIP) verify $(call quote,$(OUT))

bench: setup export ## how long OUT takes, stage by stage, and what it costs
	$(CLIPSKIP) bench $(call quote,$(OUT))

prove: setup export ## one report of MODEL to send: agreement with PyTorch, a sheet, times, fp16 with outliers
	$(BIN)/python -m clipskip.bench.prove $(call quote,$(MODEL)) $(call quote,$(OUT)) $(if $(PICTURES),--pictures $(call quote,$(PICTURES))) \
	  $(if $(PROMPT),--prompt $(call quote,$(PROMPT))) $(if $(SIZE),--size $(call quote,$(SIZE)))

prove-recommend: setup ## is `clipskip recommend` right? Trains three toy models and asks each twenty times
	$(BIN)/python export/sample/prove_recommend.py

bench-peers: setup export ## MODEL beside diffusers, torch.compile, OpenVINO, optimum-onnx: one run; with FULL=1 of SD 1.5's size
ifdef FULL
	$(BIN)/python -m clipskip.bench.full_size build/full
	$(BIN)/python -m clipskip.bench.peers build/full/random-sd15 build/full/store --steps 4 --rounds 5 --minutes 12 --out build/bench/full-peers.json
else
	$(BIN)/python -m clipskip.bench.peers $(call quote,$(MODEL)) $(call quote,$(OUT)) --out build/bench/peers.json
endif

soak: setup export ## `clipskip serve` under 64 clients: every picture against its serial twin, and its memory
	$(BIN)/python tests/random_lora.py $(call quote,$(OUT)) build/soak-lora.safetensors
	$(BIN)/python -m clipskip.bench.soak $(call quote,$(OUT)) --lora build/soak-lora.safetensors

performance: setup ## docs/performance.md anew, of the sample model and one of SD 1.5's size: an hour on two quiet cores
	$(SAMPLE) build/sample
	$(CLIPSKIP) bench build/sample --out docs/performance/sample-store.json
	$(BIN)/python -m clipskip.bench.peers export/sample build/sample --out docs/performance/sample-peers.json
	$(BIN)/python -m clipskip.bench.full_size build/full
	$(CLIPSKIP) bench build/full/store --size 256 --minutes 8 --out docs/performance/full-store.json
	$(BIN)/python -m clipskip.bench.peers build/full/random-sd15 build/full/store --steps 4 --rounds 5 --minutes 12 --out docs/performance/full-peers.json
	$(BIN)/python -m clipskip.bench.report docs/performance/*.json

clean: ## remove everything that can be made again, but .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
