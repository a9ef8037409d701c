# Every target sets itself up in .venv first; all it needs is Python 3.10 to 3.12, for label and test-clients 3.11 or 3.12.
PYTHON ?= python3
VENV = .venv
RUN = $(VENV)/bin/python
TOOLS = $(VENV)/tools/bin/python
BUNDLE = $(RUN) -m monai.bundle run
DEMO = runs/demo
PRETRAIN = runs/pretrain
LABEL = $(VENV)/clients/label
DEPLOY = $(VENV)/clients/deploy
NVFLARE = $(VENV)/clients/nvflare
TRACKING = $(VENV)/clients/tracking
INSTALL = -m pip install --quiet --disable-pip-version-check
PORT ?= 8000

.PHONY: help venv demo demo-training pretrain test test-slow test-clients export bundle label lint lock audit clean

help:
	@echo "make demo       segment a generated scan with the weights that are here: a minute"
	@echo "make demo-training  train a small network on generated scans, measure it, use it: minutes on a CPU"
	@echo "make pretrain   train such weights, for real CTs, on generated ones alone: hours on a CPU"
	@echo "make test       run the tests"
	@echo "make test-slow  run the tests that take long"
	@echo "make test-clients  run the tests of MONAI Label, MONAI Deploy, NVFLARE and MLflow, which it installs into .venv/clients"
	@echo "make label      serve the bundle by MONAI Label: STUDIES=folder of images (PORT=8000)"
	@echo "make export     write models/model.ts and models/model.onnx from models/model.pt (or another by WEIGHTS=...)"
	@echo "make bundle     pack the bundle into one zip in dist/, with the weights if there are any"
	@echo "make lint       check the style"
	@echo "make lock       write requirements.lock: after a change of requirements.txt, -dicom.txt or -test.txt"
	@echo "make audit      look up requirements.lock in the database of known vulnerabilities"
	@echo "make venv       make or update .venv, which demos, training, tests and export do"
	@echo "make clean      remove what the demos made"

venv: $(VENV)/installed

$(VENV)/installed: requirements.txt requirements-dicom.txt requirements-test.txt requirements.lock
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 10) and 'Python 3.10 or later is needed')"
	$(PYTHON) -m venv $(VENV)
	sed -e '/--hash=/d' -e 's/ \\$$//' requirements.lock > $(VENV)/constraints.txt  # a CPU build of torch has another hash
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dicom.txt -r requirements-test.txt -c $(VENV)/constraints.txt
	touch $@

demo: venv
	$(RUN) -m scripts.phantom --output_dir $(DEMO)/scan --cases 1 --seed 10 --variety wide --spacing_mm 1.5
	$(BUNDLE) --config_file configs/inference.json --dataset_dir $(DEMO)/scan/volume-0.nii.gz --output_dir $(DEMO)/mask
	@echo
	@echo "The mask of a scan that nobody has:  $(DEMO)/mask/volume-0_seg.nii.gz, its millilitres in volumes.csv"
	@echo "A picture of it:                     $(DEMO)/mask/volume-0_seg.png"

demo-training: venv
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

pretrain: venv
	$(RUN) -m scripts.phantom.pool --output_dir $(PRETRAIN)/cases --rare 80 --processes 2
	$(BUNDLE) training --config_file "['configs/train.json','configs/pretrain.json']" --dataset_dir $(PRETRAIN)/cases
	$(BUNDLE) training --config_file "['configs/train.json','configs/pretrain.json','configs/pretrain_refine.json']" --dataset_dir $(PRETRAIN)/cases
	$(BUNDLE) evaluating --config_file "['configs/train.json','configs/pretrain.json','configs/pretrain_refine.json','configs/evaluate.json']" --dataset_dir $(PRETRAIN)/cases
	$(BUNDLE) training --config_file "['configs/train.json','configs/pretrain.json','configs/pretrain_tumor.json']" --dataset_dir $(PRETRAIN)/cases --pretrained $(PRETRAIN)_refine/model.pt
	$(BUNDLE) evaluating --config_file "['configs/train.json','configs/pretrain.json','configs/pretrain_tumor.json','configs/evaluate.json']" --dataset_dir $(PRETRAIN)/cases

test: venv
	$(RUN) -m pytest -m "not slow and not client"

test-slow: venv
	$(RUN) -m pytest -m slow

$(LABEL)/installed: requirements.txt requirements-label.txt requirements-label-nodeps.txt label/sitecustomize.py
	$(PYTHON) -m venv $(LABEL)
	$(LABEL)/bin/python $(INSTALL) --no-deps -r requirements-label-nodeps.txt
	$(LABEL)/bin/python $(INSTALL) -r requirements-label.txt pytest==9.2.0
	cp label/sitecustomize.py "$$($(LABEL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	touch $@

$(DEPLOY)/installed: requirements.txt requirements-deploy.txt
	$(PYTHON) -m venv $(DEPLOY)
	$(DEPLOY)/bin/python $(INSTALL) -r requirements-deploy.txt pytest==9.2.0
	touch $@

$(NVFLARE)/installed $(TRACKING)/installed: $(VENV)/clients/%/installed: requirements.txt requirements-%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(INSTALL) -r requirements-$*.txt pytest==9.2.0
	touch $@

label: $(LABEL)/installed
	@test -n "$(STUDIES)" || { echo "say which images: make label STUDIES=folder"; exit 1; }
	$(LABEL)/bin/python label/start.py --studies "$(STUDIES)" --port $(PORT)

test-clients: venv $(LABEL)/installed $(DEPLOY)/installed $(NVFLARE)/installed $(TRACKING)/installed
	$(RUN) -m pytest -m client tests/clients/test_bundle_run.py tests/clients/test_exports.py
	$(LABEL)/bin/python -m pytest -m client tests/clients/test_monai_label.py
	$(DEPLOY)/bin/python -m pytest -m client tests/clients/test_deploy.py
	$(NVFLARE)/bin/python -m pytest -m client tests/clients/test_nvflare.py
	$(TRACKING)/bin/python -m pytest -m client tests/clients/test_mlflow.py

export: venv
	$(RUN) -m scripts.export --weights $(or $(WEIGHTS),models/model.pt) --output_dir models

bundle: venv
	$(RUN) -m scripts.pack --output_dir dist

lint: venv
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

$(TOOLS):
	$(PYTHON) -m venv $(VENV)/tools
	$(TOOLS) -m pip install --quiet --disable-pip-version-check uv==0.13.9 pip-audit==2.10.1

lock: $(TOOLS)
	$(TOOLS) -m uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --custom-compile-command "make lock" --output-file requirements.lock requirements.txt requirements-dicom.txt requirements-test.txt

audit: $(TOOLS)
	$(TOOLS) -m pip_audit --disable-pip --require-hashes --strict --requirement requirements.lock

clean:
	rm -rf runs/demo
