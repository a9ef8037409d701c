# Every target sets itself up in .venv first; all it needs is Python 3.10 or later.
PYTHON ?= python3
VENV = .venv
RUN = $(VENV)/bin/python
BUNDLE = $(RUN) -m monai.bundle run
DEMO = runs/demo

.PHONY: help venv demo test test-slow bundle lint clean

help:
	@echo "make demo       train a small network on generated scans, measure it, use it: minutes on a CPU"
	@echo "make test       run the tests"
	@echo "make test-slow  run the tests that take long"
	@echo "make bundle     pack the bundle into one zip in dist/, with the weights if there are any"
	@echo "make lint       check the style"
	@echo "make venv       make or update .venv, which all of the above do"
	@echo "make clean      remove what the demo made"

venv: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-test.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or later is needed')"
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-test.txt
	touch $@

demo: venv
	$(RUN) -m scripts.phantom --output_dir $(DEMO)/phantoms --cases 24 --seed 1 --size 112,112,64
	$(BUNDLE) training --config_file "['configs/train.json','configs/demo.json']" --dataset_dir $(DEMO)/phantoms
	$(BUNDLE) evaluating --config_file "['configs/train.json','configs/demo.json','configs/evaluate.json']" --dataset_dir $(DEMO)/phantoms
	$(RUN) -m scripts.phantom --output_dir $(DEMO)/new --cases 1 --seed 2 --size 256,256,96
	$(BUNDLE) --config_file "['configs/inference.json','configs/demo.json']" --dataset_dir $(DEMO)/new/volume-0.nii.gz --output_dir $(DEMO)/inference
	@echo
	@echo "Dice and more of each held-out scan: $(DEMO)/evaluation/per_case.csv (summary.csv: their mean)"
	@echo "Curves of the training:              $(DEMO)/training.csv, $(DEMO)/validation.csv"
	@echo "Mask of a new scan:                  $(DEMO)/inference/volume-0_seg.nii.gz, volumes in volumes.csv"
	@echo "A picture of it:                     $(DEMO)/inference/volume-0_seg.png"

test: venv
	$(RUN) -m pytest -m "not slow"

test-slow: venv
	$(RUN) -m pytest -m slow

bundle: venv
	$(RUN) -m scripts.pack --output_dir dist

lint: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

clean:
	rm -rf runs/demo
