"""What does somebody download? Packs the bundle into one zip: the same files give the same bytes.

python -m scripts.pack --output_dir dist
python -m scripts.pack --output_dir dist --weights_url https://example.org/files
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

from scripts.commands import run_command
from scripts.errors import InputError
from scripts.files import sha256, write_text, written_whole

ROOT = Path(__file__).resolve().parents[1]
NAME = "mpunet_liver_ct"
CONTENTS = (
    "LICENSE", "Makefile", "README.md", "SECURITY.md", "metadata.json", "requirements*.txt", "requirements.lock",
    "configs/*", "docs/**/*", "models/*", "scripts/**/*.py", "scripts/**/*.j2", "label/*", "deploy/*.py",
    "federated/*.py",
)  # fmt: skip
SUMS = "SHA256SUMS"
LARGE_FILES = "large_files.json"  # as `monai.bundle download_large_files` looks for it
DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip can have
FILE_MODE = 0o100644 << 16


def list_files(root: Path = ROOT) -> list[str]:
    """Return the names of the bundle's files, sorted; hidden files are left out.

    Raises:
        InputError: if a file is missing that every bundle has.
    """
    found: set[str] = set()
    for pattern in CONTENTS:
        paths = [path for path in root.glob(pattern) if path.is_file() and not path.name.startswith(".")]
        if not paths:
            raise InputError(f"{root / pattern}: no such file; pack from a complete copy of the bundle")
        found |= {path.relative_to(root).as_posix() for path in paths}
    return sorted(found)


def is_weights(name: str) -> bool:
    """Return whether a file of this name in the bundle holds weights."""
    return name.startswith("models/") and not name.endswith((".md", ".sha256", ".json"))


def describe_large_files(files: Mapping[str, bytes], url: str) -> str:
    """Return the JSON by which ``monai.bundle download_large_files`` fetches files from ``url``, with their sums."""
    rows = [
        {
            "path": name,
            "url": f"{url.rstrip('/')}/{Path(name).name}",
            "hash_type": "sha256",
            "hash_val": hashlib.sha256(data).hexdigest(),
        }
        for name, data in files.items()
    ]
    return json.dumps({"large_files": rows}, indent=4) + "\n"


def pack(output_dir: str | Path, root: Path = ROOT, weights_url: str = "") -> Path:
    """Write ``NAME_vVERSION.zip`` and its SHA-256 sum beside it; return the zip.

    In it everything is in a folder ``NAME``, links are files, dates are gone, and ``SHA256SUMS`` has every file's sum
    (``sha256sum --check SHA256SUMS``). Weights in ``models`` are packed if they are there.

    Args:
        output_dir: where to write.
        root: of the bundle.
        weights_url: leave the weights out, and write into the zip's ``large_files.json`` that they are at this address.

    Raises:
        InputError: if a file of the bundle is missing, or there are no weights to leave out.
    """
    version = json.loads((root / "configs/metadata.json").read_text(encoding="utf-8"))["version"]
    path = Path(output_dir) / f"{NAME}_v{version}.zip"
    files = {name: (root / name).read_bytes() for name in list_files(root)}
    if weights_url:
        weights = {name: files.pop(name) for name in list(files) if is_weights(name)}
        if not weights:
            raise InputError(f"{root / 'models'}: has no weights that could be fetched from --weights_url; train first")
        files[LARGE_FILES] = describe_large_files(weights, weights_url).encode()
    sums = "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in sorted(files.items()))
    files[SUMS] = sums.encode()
    with written_whole(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sorted(files.items()):
            entry = zipfile.ZipInfo(f"{NAME}/{name}", DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = FILE_MODE
            archive.writestr(entry, data)
    write_text(path.with_suffix(".zip.sha256"), f"{sha256(path)}  {path.name}\n")
    return path


def main(output_dir: str = "dist", weights_url: str = "") -> None:
    """Pack the bundle.

    Args:
        output_dir: where to write the zip.
        weights_url: of the folder to which you upload the weights, instead of having them in the zip.
    """
    path = pack(output_dir, weights_url=weights_url)
    weights = [f"{name} ({(ROOT / name).stat().st_size / 1e6:.1f} MB)" for name in list_files() if is_weights(name)]
    to_upload = f"to upload to {weights_url}" if weights_url else "in it"
    print(f"{path} ({path.stat().st_size / 1e6:.1f} MB), weights {to_upload}: {', '.join(weights) or 'none'}")


if __name__ == "__main__":
    run_command(main)
