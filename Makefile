# Two commands: `make run` answers a question with the 0.5B model, `make test` runs every check. Both make .venv and fetch the model themselves.
PYTHON ?= python3
BIN := .venv/bin
MODEL := qwen2.5-coder-0.5b-instruct-q4_k_m

ifneq ($(lastword $(MAKEFILE_LIST)),Makefile)
$(error this runs what lies in its own folder; from elsewhere say make -C FOLDER)
endif

.PHONY: run test check lint pull oracle matrix gpu arm clean

run: pull            ## ask the model a question
	$(BIN)/engine run -m $(MODEL) --chat -p "What is 2+2?"

test: lint pull      ## formatting, types, every test
	$(BIN)/pytest -q -n auto

# What goes wrong most often, in every package: formats, containers, kernels against the reference, dumps, the judge.
CHECK := tests/test_architecture.py tests/quant/test_quant.py tests/engine/test_sample.py tests/engine/test_generate.py \
	tests/engine/test_model_facts.py tests/engine/files/test_gguf.py tests/engine/files/test_safetensors.py \
	tests/engine/kernels/test_contracts.py tests/engine/kernels/test_cpu.py tests/trace/test_aprt.py \
	tests/trace/test_trace_plan.py tests/trace/test_trace_store.py tests/trace/test_trace_forward.py \
	tests/trace/verify/test_verify_recipes.py

check: lint          ## in less than 90 s, without a model or a network
	$(BIN)/pytest -q -n auto -m "not model and not oracle" $(CHECK)

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pull: .venv/run
	$(BIN)/engine pull $(MODEL)

oracle: .venv/oracle pull   ## the slow comparisons with transformers (and llama.cpp, if llama-cpp-python is installed in .venv)
	$(BIN)/pytest -q -m oracle

matrix: .venv/dev pull   ## every combination of engine, mistake and layer, of which `make test` runs a part
	$(BIN)/pytest -q -n auto -m matrix

gpu: .venv/cuda   ## parity and throughput on an NVIDIA card (docs/gpu.md)
	$(BIN)/python -P -m qwenref.tools.dev.gpu

arm: .venv/dev   ## AArch64 machine code under qemu: its digests beside this machine's, the CPU kernels' tests (Debian or Ubuntu; docs/performance.md)
	$(BIN)/python -P -m qwenref.tools.dev.arm

.venv/run: pyproject.toml
	$(PYTHON) -I -m venv .venv
	$(BIN)/python -I -m pip install -q --upgrade pip
	$(BIN)/pip install -q -e .
	touch $@

.venv/dev: .venv/run
	$(BIN)/pip install -q -e '.[dev]'
	touch $@

.venv/cuda: .venv/run
	$(BIN)/pip install -q -e '.[cuda]'
	touch $@

.venv/oracle: .venv/dev
	$(BIN)/pip install -q -e '.[oracle]'
	touch $@

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
