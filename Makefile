# `make demo` and `make test` do all the set-up themselves, once, in an environment of their own.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Compiling every file of every package would take longer than the demo.
INSTALL = $(BIN)/pip install --quiet --no-compile --constraint requirements-tested.txt

.PHONY: demo test lint format clean

demo: $(VENV)/.ready-for-demo
	$(BIN)/python -m f3_training.demo

test: $(VENV)/.ready $(VENV)/browser
	$(BIN)/python -m pytest tests --numprocesses logical --maxprocesses 4 --dist loadfile

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.ready-for-demo: pyproject.toml requirements-tested.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable ".[demo]"
	touch $@

$(VENV)/.ready: $(VENV)/.ready-for-demo
	$(INSTALL) --editable ".[app,augmentation,cli,export,training,evaluation,test]"
	# The newest torchaudio is built for CUDA. Beside a CPU build of torch its native extension cannot be loaded, and
	# since transformers imports torchaudio wherever it is installed, `import transformers` would fail with it. Without
	# that file torchaudio goes on with its Python code. Our packages do not need it; the tests compare with it.
	$(INSTALL) --no-deps torchaudio
	if $(BIN)/python -c "import sys, torch; sys.exit(torch.version.cuda is not None)"; then \
		rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/_torchaudio.abi3.so; \
	fi
	touch $@

# The browser that the page is tested in: Debian's, unpacked and not installed, with the libraries missing here. Where there
# is no apt-get, the test takes a Chromium on the PATH or is skipped.
$(VENV)/browser: APT = apt-get --quiet=2 -o Debug::NoLocking=1 -o Dir::State::Lists=$(abspath $@.apt)/lists -o Dir::Cache=$(abspath $@.apt)
$(VENV)/browser: | $(VENV)/.ready
	-mkdir -p $@.apt/lists/partial $@.apt/archives/partial && $(APT) update && \
	$(APT) install --yes --download-only --no-install-recommends chromium-headless-shell && \
	for package in $@.apt/archives/*.deb; do dpkg -x $$package $@.apt/root || exit 1; done && \
	mv $@.apt/root $@ && rm -rf $@.apt
