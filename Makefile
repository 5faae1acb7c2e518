# Everything below works on a machine with Python 3.11+, git, make and a C compiler; the first call installs into .venv.
PYTHON ?= python3
BIN := .venv/bin
export DS_BUILD_OPS := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: install demo test test-long lint emoji clean

# The stamp is newer than what it was made from: a second call installs nothing.
install: .venv/installed
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("duostream needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --upgrade pip setuptools wheel
	$(BIN)/python -m pip install -q torch torchvision -c constraints.txt
	$(BIN)/python -m pip install -q --no-build-isolation -e '.[test]' -c constraints.txt
	touch $@

demo: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/demo.sh

# Needs DUOSTREAM_TEST_DATA, the folder that holds emoji/.
emoji: install
	PATH="$(CURDIR)/$(BIN):$$PATH" bash launch/emoji.sh

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -m "not long" --durations=15

# Worlds x stages x models, real kills, silent ranks, every published system learning. The test of two hosts needs root and
# `apt-get install iproute2 openssh-server pdsh`, and says so where it is skipped.
test-long: install
	$(BIN)/python -m pytest -m long --durations=15

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
