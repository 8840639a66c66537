# make run starts the server, make test shows that it works. The rest: see each target.
PYTHON ?= python3
PYTHON2 ?= python2.7
BIN = .venv/bin
CODE = lockstep handlers broker
PEERS = bench/peers/node_modules/.package-lock.json
JS = clients/js/node_modules/.package-lock.json
PYTHON_CLIENT = clients/python
CHESS = examples/chess/web
CHESS_MODULES = $(CHESS)/node_modules/.package-lock.json
SYSTEM = gcc=gcc python3-config=python3-dev chromium=chromium redis-server=redis-server faketime=faketime openssl=openssl curl=curl nginx=nginx \
	promtool=prometheus valgrind=valgrind

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PATH := $(CURDIR)/$(BIN):$(PATH)
# Node brings certificates of its own; those that this machine believes, a company's for one, count as well.
export NODE_EXTRA_CA_CERTS ?= $(wildcard /etc/ssl/certs/ca-certificates.crt)

.PHONY: run install chess quiz test test-long fuzz conformance docs check lint lock audit bench up roll doctor down

run: install  ## the server on its embedded broker, at http://127.0.0.1:8080
	@$(BIN)/python server.py

install: .venv/.installed  ## .venv with what the server needs

chess: .venv/.examples $(CHESS)/dist/index.html  ## chess on Lockstep, at http://127.0.0.1:8000; see examples/chess
	@$(BIN)/python -m examples.chess

quiz: .venv/.examples  ## a quiz for a hall on Lockstep, at http://127.0.0.1:8000; see examples/quiz
	@$(BIN)/python -m examples.quiz

up: .venv/.deployed  ## Redis, four processes and nginx at http://127.0.0.1:8080; STACK="--processes=8" and such
	@$(BIN)/python deploy/stack.py up $(STACK)

roll: .venv/.deployed  ## restart the processes one by one; nobody notices
	@$(BIN)/python deploy/stack.py roll $(STACK)

doctor: .venv/.deployed  ## look at what make up started; each line is ok or says what to do
	@$(BIN)/python deploy/stack.py doctor $(STACK)

down: .venv/.deployed  ## stop what make up started
	@$(BIN)/python deploy/stack.py down $(STACK)

test: .venv/.tested $(JS)  ## everything but what takes minutes
	$(BIN)/python -m pytest -n 5 --dist worksteal

test-long: .venv/.tested $(JS) $(PEERS)  ## long faults, soak, fuzzing, sanitizers; all again without the extension in C
	$(BIN)/python -m pytest -m long
	LOCKSTEP_TWIN=1 $(BIN)/python -m pytest -n 5 --dist worksteal

fuzz: .venv/.tested  ## as many generated requests, frames and payloads as FUZZ says, instead of some
	FUZZ=$${FUZZ:-2000} $(BIN)/python -m pytest -n 2 tests/test_fuzz_rest.py tests/test_fuzz_socket.py \
		tests/test_fuzz_socket_v2.py tests/test_fuzz_bus.py tests/test_frames.py tests/test_deflate.py

conformance: .venv/.tested  ## the Autobahn test suite against the WebSocket; needs a Python 2.7
	$(BIN)/python -m tests.support.autobahn $(PYTHON2)

bench: .venv/.benched $(PEERS)  ## what docs and README say of speed; on a machine that does nothing else
	$(BIN)/python -m bench.engine
	$(BIN)/python -m bench.delivery
	$(BIN)/python -m bench.expiry
	$(BIN)/python -m bench.faults
	$(BIN)/python -m bench.roll
	$(BIN)/python -m bench.server_time
	$(BIN)/python -m bench
	$(BIN)/python -m bench.scale_model --write

docs: .venv/.tested $(JS)  ## the reference of both clients, from their docstrings: build/docs
	$(BIN)/pdoc --output-directory build/docs/python lockstep_client lockstep_client.clocks lockstep_client.testing lockstep_client.types
	npm run --silent --prefix clients/js docs

check: lint test  ## what CI runs

lint: .venv/.tested $(JS) $(CHESS_MODULES)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(CODE) server.py cli.py deploy examples
	$(BIN)/mypy $(PYTHON_CLIENT)/src
	npm run --silent --prefix clients/js types
	npm run --silent --prefix $(CHESS) check

lock: .venv/bin/python  ## requirements.lock: the newest versions that setup.cfg allows, and their hashes
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 --no-header \
		--no-annotate --extra fast --extra deploy --output-file requirements.lock setup.cfg

audit: .venv/bin/python  ## known vulnerabilities of what requirements.lock names; asks PyPI
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/pip-audit --require-hashes --disable-pip --requirement requirements.lock

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python setup.cfg pyproject.toml setup.py $(wildcard handlers/native_src/*)
	$(BIN)/python -m pip install --quiet --editable '.[fast]'
	@touch $@

.venv/.deployed: .venv/.installed requirements.lock
	deploy/system-packages nginx=nginx redis-server=redis-server
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	@touch $@

.venv/.examples: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable '.[fast,examples]' --editable ./$(PYTHON_CLIENT)
	@touch $@

.venv/.tested: .venv/.deployed
	deploy/system-packages $(SYSTEM)
	$(BIN)/python -m pip install --quiet --editable '.[fast,test,deploy,examples]' --editable ./$(PYTHON_CLIENT)
	@touch $@

.venv/.benched: .venv/.tested
	deploy/system-packages gcc=gcc node=nodejs npm=npm taskset=util-linux
	$(BIN)/python -m pip install --quiet --editable '.[fast,test,deploy,bench]'
	@touch $@

$(JS): clients/js/package-lock.json | .venv/.tested
	npm ci --prefix clients/js --no-audit --no-fund --loglevel=error
	@touch $@

$(CHESS_MODULES): $(CHESS)/package-lock.json | .venv/.examples
	npm ci --prefix $(CHESS) --no-audit --no-fund --loglevel=error
	@touch $@

$(CHESS)/dist/index.html: $(CHESS_MODULES) $(wildcard $(CHESS)/*.* $(CHESS)/src/* clients/js/src/*)
	npm run --silent --prefix $(CHESS) build -- --logLevel=warn
	@touch $@

$(PEERS): bench/peers/package-lock.json | .venv/.benched
	npm ci --prefix bench/peers --no-audit --no-fund --loglevel=error
	@touch $@
