# clipskip. GNU make 4.3 or newer. make decides order only: what is stale is decided by content, inside the tool.

SPACE     := $(subst ,, )
MODEL     ?= export/sample
TARGET    ?= onnxruntime
PRECISION ?= $(if $(filter tensorrt%,$(TARGET)),fp16,fp32)
SKIPS     ?= all
VAE       ?=
PREDICTION ?=
RECOMMENDED_CLIP_SKIP ?=
OUT       ?= build/$(subst ^, ,$(patsubst %.safetensors,%,$(notdir $(patsubst %/,%,$(subst $(SPACE),^,$(MODEL))))))
PYTHON    ?= python3

VENV     := .venv
BIN      := $(VENV)/bin
export MODEL OUT VAE# which may hold spaces and quotes: recipes take them from the environment
CLIPSKIP := $(BIN)/clipskip

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-gpu test-gpu-onnxruntime check format export engines verify bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-21s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  MODEL=$$MODEL        a Stable Diffusion 1.x model: a diffusers folder, or one .safetensors"
	@echo "  OUT=$$OUT             the engine store that is made from it"
	@echo "  TARGET=$(TARGET)        onnxruntime, tensorrt-rtx or tensorrt"
	@echo "  PRECISION=$(PRECISION)            fp32 or fp16 (TensorRT needs fp16)"
	@echo "  SKIPS=$(SKIPS)                 the clip skips to export, such as 1,2 (13 of them: all)"
	@echo "  VAE=                      another VAE for MODEL: a file, or a diffusers folder"
	@echo "  PREDICTION=               epsilon or v_prediction, where MODEL does not say it"
	@echo "  RECOMMENDED_CLIP_SKIP=    what requests get that say nothing"

setup: $(VENV)/installed ## make .venv with everything that the other targets need

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

demo: setup ## checkpoint -> engines -> pictures, on the CPU
	$(CLIPSKIP) export export/sample --out build/sample
	$(BIN)/python -m clipskip.bench.demo build/sample --out build/demo

test: setup ## the whole test suite, on the CPU
	$(BIN)/python -m pytest -n 2

test-gpu: setup ## build for the NVIDIA GPU that is here and compare everything with the CPU
	$(BIN)/python -m pytest -m gpu tests/gpu

test-gpu-onnxruntime: .venv-gpu/installed ## the same for ONNX Runtime on CUDA; installs its GPU build in .venv-gpu (4 GB)
	.venv-gpu/bin/python -m pytest -m gpu tests/gpu -k onnxruntime

.venv-gpu/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	.venv-gpu/bin/python -m pip uninstall --quiet --yes onnxruntime
	.venv-gpu/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gpu]'
	touch $@

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
	$(CLIPSKIP) export "$$MODEL" --out "$$OUT" --precision $(PRECISION) --skips $(SKIPS) $(if $(VAE),--vae "$$VAE") \
	  $(addprefix --prediction=,$(PREDICTION)) $(addprefix --recommended-clip-skip=,$(RECOMMENDED_CLIP_SKIP))

engines: export ## MODEL -> engines for TARGET in OUT
	$(CLIPSKIP) build "$$OUT" --target $(TARGET)

verify: setup ## check every byte of OUT
	$(CLIPSKIP) verify "$$OUT"

bench: setup export ## latency per stage and per depth of OUT
	$(CLIPSKIP) bench "$$OUT"

clean: ## remove everything that can be made again, but .venv
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
