# Everything a user or developer types. `make help` lists the targets.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := .run
ADDRESS ?= $(or $(CAPTRIEVE_LISTEN_ADDRESS),127.0.0.1:8001)
WEB ?= $(or $(CAPTRIEVE_WEB_ADDRESS),127.0.0.1:8080)
PHOTO ?= demo/sample.jpg
DATA ?= $(wildcard ../shared/data/fashion-product-images-small)
export PHOTO DATA  # through the environment: their names may hold quotes and spaces
CLIENT_STUBS := client/captrieve_client/_generated
# Three test processes for two cores, since many tests wait; libraries get one thread each. Files stay whole, since their
# tests share fixtures, and in order, since the last ones are short. Hundreds of processes import the same modules.
TESTS := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= \
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
# `python -m venv` that Ctrl-C ends without a traceback.
QUIET_VENV := import runpy, signal; signal.signal(signal.SIGINT, signal.SIG_DFL); runpy.run_module("venv", run_name="__main__", alter_sys=True)

.DEFAULT_GOAL := help
.PHONY: help demo up down setup test unit campaign test-faults test-tensorrt coverage load-test gpu-report check format proto config-page results-page

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.serving: pyproject.toml client/pyproject.toml
	@echo "installing what serving needs into $(VENV) (a minute)"
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "Python 3.11 or 3.12 is needed: set PYTHON=python3.11")'
	@$(PYTHON) -c '$(QUIET_VENV)' $(VENV)
	@$(PIP) --editable './client[contact-sheet]' --editable '.[embedded,demo]'
	@touch $@

$(VENV)/.development: pyproject.toml client/pyproject.toml $(VENV)/.serving
	@echo "installing torch and the development tools into $(VENV) (a few minutes)"
	@$(PIP) --upgrade 'pip>=25.1'
	@$(PIP) --editable './client[contact-sheet]' --editable '.[embedded,demo,training,export]' --group dev
	@touch $@

demo: $(VENV)/.serving ## search with a sample picture, or PHOTO=your.jpg, and stop everything again
	@$(BIN)/python -m demo.run_demo --photo "$$PHOTO"

up: $(VENV)/.serving ## start the gateway in the background on ADDRESS (127.0.0.1:8001), with its page on WEB (127.0.0.1:8080)
	@$(BIN)/python -m demo.background up --address '$(ADDRESS)' --web '$(WEB)' --run '$(RUN)'

down: ## stop it
	@$(BIN)/python -m demo.background down --run '$(RUN)'

setup: $(VENV)/.development ## everything for training, export and development

test: $(VENV)/.development ## all tests, with a real Triton
	@$(TESTS) -m 'not campaign and not faults and not tensorrt'

unit: $(VENV)/.development ## the fast tests only
	@$(TESTS) -m 'not triton and not torch and not data and not slow and not campaign and not faults and not tensorrt'

campaign: $(VENV)/.development ## repeat with many more cases what "make test" proves with a few
	@$(TESTS) -m campaign

test-faults: $(VENV)/.development ## kills, full disks and attacks on a gateway under load (10 minutes), with figures
	@$(BIN)/python -m pytest -m faults -rP --durations=0 --durations-min=1 tests/e2e/test_faults.py

test-tensorrt: $(VENV)/.development ## compile TensorRT-RTX engines of both sizes for a T4; needs no GPU and executes nothing
	@$(BIN)/python -m pytest tests/export/test_tensorrt_builder.py -m tensorrt

coverage: $(VENV)/.development ## all tests, and which lines they run
	@mkdir -p '$(RUN)'
	@$(TESTS) -m 'not campaign and not faults and not tensorrt' --cov --cov-report=term:skip-covered --cov-report=html:$(RUN)/coverage
	@echo 'the lines are in $(RUN)/coverage/index.html'

load-test: $(VENV)/.development ## the gateway under load with the photos of DATA=FOLDER, and perf_analyzer where there is one
	@[[ -n "$$DATA" && -d "$$DATA" ]] || { echo 'make load-test DATA=FOLDER: a folder of photos, or with a folder images/ of them'; exit 2; }
	@mkdir -p '$(RUN)/load-test'
	@$(BIN)/python -m benchmarks.load --data "$$DATA" --output '$(RUN)/load-test/load.json' --plot '$(RUN)/load-test/load.png' | tee '$(RUN)/load-test/load.txt'
	@$(BIN)/python -m benchmarks.perf_analyzer --data "$$DATA" --output '$(RUN)/load-test/perf_analyzer'
	@echo 'the reports are in $(RUN)/load-test'

gpu-report: $(VENV)/.development ## on a host with a GPU: measure the containers and write .run/gpu-report/report.md; DRY_RUN=1 needs no GPU
	@$(BIN)/python -m benchmarks.gpu_report $(if $(DATA),--data "$$DATA") $(if $(DRY_RUN),--dry-run)

check: $(VENV)/.development ## ruff, mypy, import rules, and whether generated files are current
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m search_gateway.settings_page | diff docs/configuration.md - || { echo 'docs/configuration.md is not current: run "make config-page"'; exit 1; }
	@$(BIN)/python -m benchmarks.results_page | diff docs/results.md - || { echo 'docs/results.md is not current: run "make results-page"'; exit 1; }
	@$(BIN)/python -m training.model_card --check
	@$(MAKE) --no-print-directory proto
	@git diff --exit-code --stat -- search_api $(CLIENT_STUBS) || { echo 'the stubs are not current: commit what "make proto" wrote'; exit 1; }

format: $(VENV)/.development ## write the code as ruff wants it
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

config-page: $(VENV)/.development ## write docs/configuration.md from the settings class
	@$(BIN)/python -m search_gateway.settings_page > docs/configuration.md

results-page: $(VENV)/.development ## write docs/results.md from the records of the benchmarks
	@$(BIN)/python -m benchmarks.results_page > docs/results.md

proto: $(VENV)/.development ## write the stubs of server and client from search.proto
	@$(BIN)/python -m grpc_tools.protoc --proto_path=. --python_out=. --pyi_out=. --grpc_python_out=. search_api/search.proto
	@for stub in search_pb2.py search_pb2.pyi search_pb2_grpc.py; do \
		sed -e 's/search_api\.search_pb2/captrieve_client._generated.search_pb2/; s/^from search_api import/from captrieve_client._generated import/' \
			"search_api/$$stub" > "$(CLIENT_STUBS)/$$stub"; \
	done
