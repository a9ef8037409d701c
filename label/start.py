"""How is the bundle served by MONAI Label? Copies it into an app folder, says what to click, and starts the server.

    python label/start.py --studies /path/to/images

The copy is the server's own: its training changes the weights there and leaves the bundle's alone.
"""

import json
import os
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai.bundle import ConfigParser  # noqa: E402

from scripts.commands import run_command  # noqa: E402
from scripts.data import class_names, describe_classes  # noqa: E402
from scripts.errors import InputError  # noqa: E402
from scripts.files import sha256, sum_file  # noqa: E402
from scripts.pack import NAME, list_files  # noqa: E402
from scripts.settings import read_settings, settings_file  # noqa: E402

WEIGHTS = Path("models/model.pt")
SUFFIXES = (".nii", ".nii.gz", ".nrrd")  # of scans that MONAI Label finds in a folder
ORIGIN = "weights.sha256"  # in the app folder: the sum of the weights that the copy was made of
CLICKS = """
MONAI Label serves the bundle at {url} (Ctrl-C ends it)
  images    {studies}
  weights   {weights}
  labels    {labels}

3D Slicer   install the extension MONAILabel (Extensions Manager), open the module MONAILabel, MONAI Label server:
            {url}, click the green arrows; Next Sample, or load a CT and let it be uploaded;
            Auto Segmentation: model {name}, Run
OHIF        {ohif}
API         {url}
"""


def set_target(bundle: Path, target: str) -> None:
    """Make ``target`` that of the bundle's configs and metadata. Raises `InputError` if there is none of that name."""
    names = class_names(target)
    for config in ("train", "inference"):
        path = bundle / f"configs/{config}.json"
        content = json.loads(path.read_text(encoding="utf-8")) | {"target": target}
        path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")
    for path in (bundle / "configs/metadata.json", bundle / "metadata.json"):
        content = describe_classes(json.loads(path.read_text(encoding="utf-8")), names)
        path.write_text(json.dumps(content, indent=4) + "\n", encoding="utf-8")


def is_copy(own: Path, source: Path, origin: Path) -> bool:
    """Return whether ``own`` has the bytes of ``source``, or was made of them and trained since, as ``origin`` says."""
    return sha256(source) in (sha256(own), origin.read_text(encoding="utf-8").strip() if origin.is_file() else None)


def prepare(app_dir: Path, root: Path = ROOT, target: str | None = None, weights: Path | None = None) -> Path:
    """Lay the app and a copy of the bundle into ``app_dir``; return the weights that it uses.

    Args:
        app_dir: of the server.
        root: of the bundle.
        target: what the weights find; by default what the settings beside them say, or else the bundle's configs.
        weights: a file of them in the place of the bundle's. Those of an earlier copy, maybe trained since, stay.

    Raises:
        InputError: if there are no weights, or no such target; if ``weights`` are not what an earlier copy was made of.
    """
    bundle = app_dir / "model" / NAME
    own = bundle / WEIGHTS
    source = weights or root / WEIGHTS
    if not source.is_file() and (weights or not own.is_file()):
        raise InputError(f"{source}: no such file; train, or give the weights by --weights")
    if own.is_file() and source.is_file() and not is_copy(own, source, app_dir / ORIGIN):
        found = f"{source}: not the weights that {app_dir} serves: those of an earlier start, maybe trained since"
        if weights:
            raise InputError(f"{found}; give another --app_dir, or delete {own}")
        print(f"{found}; to serve the bundle's, give another --app_dir, or delete {own}", flush=True)
    for name in list_files(root):
        if not name.startswith("models/"):
            (bundle / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, bundle / name)
    if not own.is_file():
        own.parent.mkdir(parents=True, exist_ok=True)
        for beside in (settings_file(own), sum_file(own)):  # of weights that were there
            beside.unlink(missing_ok=True)
        shutil.copyfile(source, own)
        (app_dir / ORIGIN).write_text(sha256(source) + "\n", encoding="utf-8")
        if settings_file(source).is_file():
            shutil.copyfile(settings_file(source), settings_file(own))
    target = target or read_settings(own).get("target")
    if target:
        set_target(bundle, target)
    shutil.copyfile(root / "label/main.py", app_dir / "main.py")
    return own


def start(
    studies: str,
    app_dir: str = "runs/label",
    host: str = "127.0.0.1",
    port: int = 8000,
    target: str | None = None,
    weights: str | None = None,
) -> None:
    """Serve the bundle; ends when the server does.

    Args:
        studies: folder of images (NIfTI, NRRD), or the URL of a DICOMweb server.
        app_dir: where the server keeps its copy of the bundle, with what is trained, and its log.
        host: address to listen at; others than this machine's own let anybody who can reach it use the server.
        port: to listen at.
        target: what the weights find, of liver, tumor, liver_and_tumor; by default as they were trained.
        weights: file of them; by default models/model.pt.
    """
    is_url = studies.startswith(("http://", "https://"))
    if not is_url and not Path(studies).is_dir():
        raise InputError(f"{studies}: no such folder; give a folder of images or the URL of a DICOMweb server")
    app = Path(app_dir).resolve()
    used = prepare(app, target=target, weights=Path(weights) if weights else None)
    url = f"http://{host}:{port}"
    config = ConfigParser(ConfigParser.load_config_file(used.parents[1] / "configs/inference.json"))
    config["ckpt_path"] = str(used)
    ohif = f"open {url}/ohif/" if is_url else "needs a DICOMweb server as --studies (see docs/monai_label.md)"
    names = config.get_parsed_content("class_names")
    labels = ", ".join(f"{index} {name}" for index, name in enumerate(names) if index)
    words = {"url": url, "studies": studies, "weights": used, "labels": labels, "name": NAME, "ohif": ohif}
    print(CLICKS.format(**words), flush=True)
    if not is_url and not any(path.name.endswith(SUFFIXES) for path in Path(studies).iterdir()):
        advice = "of DICOM give the URL of a DICOMweb server as --studies, or load a CT in 3D Slicer"
        print(f"{studies}: has no images of {', '.join(SUFFIXES)}; {advice}", flush=True)
    os.environ["PATH"] += os.pathsep + str(Path(sys.executable).parent)  # where dcmqi's programs are
    os.environ.setdefault("MONAI_LABEL_AUTO_UPDATE_SCORING", "false")  # it would score all images at once, at the start
    arguments = ["start_server", "--app", str(app), "--studies", studies, "--host", host, "--port", str(port)]
    os.execv(sys.executable, [sys.executable, "-m", "monailabel.main", *arguments])


if __name__ == "__main__":
    run_command(start)
