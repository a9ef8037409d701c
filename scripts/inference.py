"""What surrounds the network when it segments somebody's scan: finding and checking images, writing masks and previews.

Preprocessing, sliding window and postprocessing themselves are MONAI's, declared in ``configs/inference.json``.
"""

import logging
import os
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.config import KeysCollection, PathLike
from monai.data import (
    Dataset,
    ImageReader,
    MetaTensor,
    NibabelWriter,
    list_data_collate,
)
from monai.engines.utils import IterationEvents
from monai.inferers import SlidingWindowInferer
from monai.transforms import LoadImage, LoadImaged, SaveImaged
from monai.utils import ImageMetaKey, convert_to_numpy
from tqdm import tqdm

from scripts.cases import find_grid_errors, find_hu_errors, is_label_map
from scripts.errors import InputError, find_input_error
from scripts.files import written_whole
from scripts.headers import IMAGE_SUFFIXES, NIFTI_SUFFIXES, explain_unreadable, find_voxel_ml, output_name
from scripts.inferers import DeviceInferer
from scripts.masks import reaches_border
from scripts.preview import draw_preview
from scripts.records import Records
from scripts.scans import MODALITY, SERIES_UID, check_file, is_dicom, read_slice

logger = logging.getLogger(__name__)


def name_output(metadata: Mapping[str, Any], saver: Any) -> dict[str, Any]:
    """Return what MONAI's SaveImage names an output by: the suffix alone is dropped, not the last part of ``a.b.c``."""
    source = str(metadata[ImageMetaKey.FILENAME_OR_OBJ])
    return {
        "subject": os.path.join(os.path.dirname(os.path.normpath(source)), output_name(source) + ".nii"),
        "idx": None,
    }


def _named(path: Path) -> Path:
    """Return a path whose last part is a name, as outputs need one, not ``.`` or ``..``."""
    return Path(os.path.abspath(path)) if path.name in ("", "..") else path


def images_root(dataset_dir: PathLike) -> str:
    """Return the folder relative to which outputs keep their subfolders: of an image, the one it is in."""
    root = Path(dataset_dir)
    is_image = root.is_file() or (root.is_dir() and _is_series(_list_folder(root)))
    return str(_named(root).parent if is_image else root)


def _list_folder(folder: Path) -> list[Path] | None:
    """Return what is in a folder, without hidden files, in order; None if this user must not look into it."""
    try:
        paths = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        for path in paths[:1]:
            path.lstat()  # names may be read, and nothing else
        return paths
    except PermissionError:
        return None


def _find_folders(root: Path) -> list[Path]:
    """Return ``root`` and the folders in it, linked ones too, each once, in order; without hidden ones."""
    found, seen = [root], {os.path.realpath(root)}
    for folder, names, _ in os.walk(root, followlinks=True):
        places = {name: os.path.realpath(os.path.join(folder, name)) for name in sorted(names)}
        names.clear()
        for name, place in places.items():
            if not name.startswith(".") and place not in seen:
                names.append(name)
                seen.add(place)
        found += [Path(folder, name) for name in names]
    return sorted(found)


def _is_series(paths: Sequence[Path] | None) -> bool:
    """Return whether there are DICOM files of images in a folder, or may be: that it is closed is said later."""
    return paths is None or any(is_dicom(path) for path in paths if path.is_file())


def find_images(dataset_dir: PathLike, output_dir: PathLike = "") -> list[dict[str, str]]:
    """Return a list of ``{"image": path}``: a path is an image file or a folder of one DICOM series.

    Args:
        dataset_dir: an image file (NIfTI, NRRD, MetaImage), a DICOM series folder, or a folder with any of these,
            subfolders included.
        output_dir: where masks are written; below ``dataset_dir`` it is not searched, as masks are no images.

    Raises:
        InputError: if nothing is there or nothing is an image; if two images in one folder would have outputs of one
            name; if masks would be written among the images of a folder.
    """
    root = Path(dataset_dir)
    if not root.exists():
        raise InputError(f"{root}: no such file or folder; give an image or a folder of images as --dataset_dir")
    if root.is_file():
        if not root.name.lower().endswith(IMAGE_SUFFIXES):
            hint = "give the folder of its DICOM series" if is_dicom(root) else f"expected {', '.join(IMAGE_SUFFIXES)}"
            raise InputError(f"{root}: not an image file that can be segmented; {hint}")
        return [{"image": str(root)}]

    images: list[Path] = []
    outputs = Path(output_dir).resolve() if output_dir else None
    if outputs == root.resolve():
        raise InputError(f"{root}: is --output_dir too, where masks would be taken for images; give another folder")
    for folder in _find_folders(root):
        if outputs and not root.resolve().is_relative_to(outputs) and folder.resolve().is_relative_to(outputs):
            continue
        paths = _list_folder(folder)
        # a link to nowhere is listed too: it is said when it is read
        images += [path for path in paths or () if path.name.lower().endswith(IMAGE_SUFFIXES) and not path.is_dir()]
        if _is_series(paths):
            images.append(_named(folder))
    if not images:
        wanted = ", ".join(IMAGE_SUFFIXES)
        raise InputError(f"{root}: no images found; looked for {wanted} files and folders of DICOM series")
    taken: dict[Path, Path] = {}
    for path in images:
        other = taken.setdefault(path.parent / output_name(path), path)
        if other != path:
            raise InputError(f"{path}: its mask would have the same name as that of {other.name}; rename one of them")
    _warn_of_parts([path for path in images if path.is_dir()])
    # readers would take a name that begins with ~ for somebody's home
    return [{"image": os.path.abspath(path) if str(path).startswith("~") else str(path)} for path in images]


def _warn_of_parts(folders: Sequence[Path]) -> None:
    """Say of folders that have one DICOM series in common, by the first file of each, that each is a scan by itself."""
    first: dict[str, Path] = {}
    for folder in folders if len(folders) > 1 else ():
        files = (path for path in _list_folder(folder) or () if path.is_file() and is_dicom(path))
        try:
            uid = read_slice(str(next(files))).tags[SERIES_UID]
        except (StopIteration, RuntimeError):  # closed, or damaged: it is said when it is read
            continue
        other = first.setdefault(uid, folder) if uid else folder
        if other != folder:
            logger.warning(
                "%s and %s: have files of one DICOM series, and each folder is segmented by itself; if they are parts "
                "of one scan, put their files into one folder", other, folder,
            )  # fmt: skip


def check_header(path: str) -> None:
    """Raise `InputError` unless the header of the NIfTI file ``path`` has real numbers and a proper affine."""
    image = nib.load(path)
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: holds {image.get_data_dtype()} voxels, not numbers; convert it to HU")
    _check_affine(image.affine, path)


def _check_affine(affine: np.ndarray, path: str) -> None:
    axes = affine[:3, :3]
    if not np.isfinite(affine).all() or abs(np.linalg.det(axes)) < 1e-9 or np.linalg.matrix_rank(axes) < 3:
        raise InputError(f"{path}: its header gives no voxel size and orientation; write it again with a valid affine")


def check_image(image: MetaTensor, path: str, check_hu: bool = True) -> None:
    """Raise `InputError` unless ``image``, read from ``path``, is one 3D volume of finite numbers on a proper grid.

    With ``check_hu`` it must also be a CT, as far as DICOM says, and in Hounsfield units, as far as its numbers do.
    """
    shape = tuple(image.shape)
    if len(shape) != 3 or min(shape) < 2:
        kind = "2D" if sum(size > 1 for size in shape) < 3 else f"{len(shape)}D"
        raise InputError(f"{path}: is a {kind} image of shape {shape}; give one 3D volume")
    affine = np.asarray(image.affine)
    _check_affine(affine, path)
    for reason in find_grid_errors(affine, shape):
        raise InputError(f"{path}: {reason}")
    if not torch.isfinite(torch.as_tensor(image)).all():
        raise InputError(f"{path}: has NaN or infinite voxels; replace them (air is -1000 HU) and try again")
    modality = image.meta.get(MODALITY) or "CT"
    if check_hu and modality != "CT":
        raise InputError(f"{path}: is of modality {modality}, not CT; give a CT, or give --check_hu false")
    if check_hu and is_label_map(torch.as_tensor(image).numpy()):
        raise InputError(
            f"{path}: is a label map, with numbers from 0 to {float(image.max()):g}; give the CT that it is of"
        )
    for reason in find_hu_errors(torch.as_tensor(image).numpy()) if check_hu else ():
        raise InputError(f"{path}: {reason}, or give --check_hu false")
    if np.allclose(np.abs(affine), np.eye(4)):  # of MetaImage and NRRD it has two signs
        logger.warning("%s: identity affine: its orientation and millimetres are likely not true", path)


class CheckedLoadImaged(LoadImaged):
    """MONAI's loader, which says in one line which image cannot be read, or is no 3D volume of numbers, or no CT.

    Args:
        keys: of paths; they become images ``(H, W, D)``.
        check_hu: refuse what cannot be a CT in Hounsfield units.
        kwargs: of ``LoadImaged``.
    """

    def __init__(self, keys: KeysCollection, *args: Any, check_hu: bool = True, **kwargs: Any):
        super().__init__(keys, *args, **kwargs)
        self.check_hu = check_hu

    def __call__(self, data: Mapping[Hashable, Any], reader: ImageReader | None = None) -> dict[Hashable, Any]:
        """Return the data with images in the place of paths.

        Raises:
            InputError: if one cannot be used.
        """
        paths = {key: str(data[key]) for key in self.key_iterator(data)}
        path = ""
        try:
            for path in paths.values():
                if os.path.isfile(path):
                    check_file(path)
                if path.lower().endswith(NIFTI_SUFFIXES):
                    check_header(path)
            loaded = super().__call__(data, reader)
        except Exception as error:  # whatever a reader of any format raises on a damaged file; MONAI wraps it
            reason = f"{path}: {explain_unreadable(error.__cause__ or error)}"
            raise find_input_error(error) or InputError(reason) from error
        for key, path in paths.items():
            check_image(loaded[key], path, self.check_hu)
        return loaded


class CheckedSaveImaged(SaveImaged):
    """MONAI's writer, which says in one line why nothing could be written; MONAI would advise to install packages."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Write the images.

        Raises:
            InputError: if nothing can be written there, or the disk is full.
        """
        try:
            return super().__call__(data)
        except OSError as error:  # of a folder
            raise InputError(f"{error.filename}: cannot be written ({error.strerror}); give another place") from error
        except RuntimeError as error:
            raised = find_input_error(error)  # MONAI quotes that of the writer
            if raised is None:
                raise
            raise raised from error


class ImageBatches:
    """The batches of an inference, one image each. An image that cannot be read is named, and the others go on.

    Args:
        dataset: of the images, which a `CheckedLoadImaged` loads.

    Attributes:
        failures: ``{"image": path, "reason": ...}`` of those that failed so far; of one that has its mask, but no DICOM
            SEG, ``{"mask": path}`` as well.
        left_out: how many of these have no mask.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.failures: list[dict[str, str]] = []

    @property
    def left_out(self) -> int:
        return sum("mask" not in failure for failure in self.failures)

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        """Yield ``{"image": (1, C, H, W, D), ...}`` of every image that can be read.

        Raises:
            InputError: if none can be.
        """
        self.failures.clear()
        for index, item in enumerate(self.dataset.data):
            try:
                loaded = self.dataset[index]
            except Exception as error:  # MONAI wraps that of a transform
                reason = find_input_error(error)
                if reason is None:
                    raise
                self.failures.append({"image": item["image"], "reason": str(reason)})
                if len(self.dataset) > 1:
                    logger.error("%s", reason)
                if self.left_out == len(self.dataset):
                    raise reason from error
            else:
                yield list_data_collate([loaded])


class ImageProgressBar:
    """Of several images, how many are done, with the time left. Of one image the inferer shows that of its windows.

    Args:
        batches: of the evaluator.
        inferer: a sliding window, or a `DeviceInferer` of one, whose bar is left out where there is this one.
    """

    def __init__(self, batches: ImageBatches, inferer: SlidingWindowInferer | DeviceInferer):
        self.batches = batches
        self.inferer = getattr(inferer, "inferer", inferer)

    def attach(self, engine: Engine) -> None:
        """Show the progress of the evaluator ``engine``."""
        if len(self.batches.dataset) > 1:
            self.inferer.progress = False
        if len(self.batches.dataset) > 1 and idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self.start)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self)
            engine.add_event_handler(Events.COMPLETED, lambda: self.bar.close())

    def start(self) -> None:
        """Begin with no image done."""
        self.bar = tqdm(total=len(self.batches.dataset), desc="images", unit="image")

    def __call__(self, engine: Engine) -> None:
        """Count the images done and those left out."""
        self.bar.update(engine.state.iteration + self.batches.left_out - self.bar.n)


class FailureReport:
    """At the end of an inference, says which images were left out, or have no DICOM SEG, and fails, if there are any.

    The table of them is ``failed.csv``.

    So it does if all were, or if the inference ends by another error. Of several processes none ends before all are
    done, as `torchrun` stops the others if one fails.

    Args:
        batches: of the evaluator.
        records: of the inference, which write the table.
    """

    def __init__(self, batches: ImageBatches, records: Records):
        self.batches = batches
        self.records = records

    def attach(self, engine: Engine) -> None:
        """Report at the end of the evaluator ``engine``."""
        engine.add_event_handler(Events.COMPLETED, self)
        engine.add_event_handler(Events.EXCEPTION_RAISED, self.end)

    def write(self) -> None:
        """Write the table."""
        for failure in self.batches.failures:
            self.records.write(failure)
        self.records.write_tables()

    def __call__(self, engine: Engine) -> None:
        """Write the table.

        Raises:
            InputError: if an image was left out, or has no DICOM SEG.
        """
        self.write()
        idist.barrier()
        failures, images = self.batches.failures, len(self.batches.dataset)
        if failures:
            path = self.records.output_dir / "failed.csv"
            left_out = self.batches.left_out
            counts = {"were not segmented": left_out, "have no DICOM SEG": len(failures) - left_out}
            found = " and ".join(f"{count} of {images} images {what}" for what, count in counts.items() if count)
            found = f"{found}, see {path}; the first: "
            raise InputError(f"{found if images > 1 else ''}{failures[0]['reason']}")

    def end(self, engine: Engine, error: Exception) -> None:
        """Write the table, and raise ``error`` again unless it says that no image could be read."""
        if self.batches.left_out == len(self.batches.dataset):
            self(engine)
        self.write()
        raise error


class GridWriter(NibabelWriter):
    """Writes NIfTI masks that lie exactly on their image's grid, and appears under its name only when complete.

    If the image is NIfTI, the mask has its header: affine to the bit, sform and qform with their codes, units.
    """

    def write(self, filename: PathLike, verbose: bool = False, **kwargs: Any) -> None:
        """Write the data given so far to ``filename``, which ends in ``.nii`` or ``.nii.gz``."""
        with written_whole(filename) as temporary:
            if self.source_header is None:
                super().write(temporary, verbose=verbose, **kwargs)
            else:
                data = convert_to_numpy(self.data_obj).astype(self.output_dtype)
                header = self.source_header.copy()
                header.extensions = type(header.extensions)()  # what else is said of the patient stays in the image
                for field in ("data_type", "descrip", "db_name", "aux_file", "intent_name"):
                    if field in header:
                        header[field] = b""
                header.set_data_dtype(data.dtype)
                header.set_slope_inter(1, 0)
                header["cal_min"] = header["cal_max"] = 0
                nib.save(type(self.source_image)(data, self.source_image.affine, header), temporary)

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = True, **options: Any) -> None:
        """Take the grid from the metadata, as MONAI's writer does, and the header from the file that it names."""
        super().set_metadata(meta_dict, resample, **options)
        source = str((meta_dict or {}).get(ImageMetaKey.FILENAME_OR_OBJ, ""))
        is_nifti = source.lower().endswith(NIFTI_SUFFIXES) and os.path.isfile(source)
        self.source_image = nib.load(source) if is_nifti else None
        self.source_header = None
        if self.source_image is not None and self.source_image.shape[:3] == np.shape(self.data_obj)[:3]:
            self.source_header = self.source_image.header


class CaseReports:
    """After each image of an inference: volumes in ml (``volumes.csv``, ``volumes.json``) and a preview picture.

    Args:
        records: of the inference, which write the tables; previews lie beside the masks.
        class_names: of all classes, background first.
        reader: to read the image again for its preview.
        preview: whether pictures are made.
        batches: of the evaluator, if other handlers before this one may add what failed of an image that has its mask.
    """

    def __init__(
        self,
        records: Records,
        class_names: Sequence[str],
        reader: ImageReader,
        preview: bool = True,
        batches: ImageBatches | None = None,
    ):
        self.records = records
        self.failures = batches.failures if batches else []
        self.class_names = tuple(class_names)
        self.load_image = LoadImage(reader=reader, image_only=True)
        self.preview = preview

    def attach(self, engine: Engine) -> None:
        """Report on every image of the evaluator ``engine``."""
        engine.add_event_handler(IterationEvents.FORWARD_COMPLETED, self.begin)  # before masks are written
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED, lambda: self.records.write_tables())

    def begin(self, engine: Engine) -> None:
        """Note that the masks of this iteration are being written."""
        for image in engine.state.batch["image"].meta[ImageMetaKey.FILENAME_OR_OBJ]:
            self.records.begin(image)

    def __call__(self, engine: Engine) -> None:
        """Add the images of this iteration to the tables, and draw them."""
        for output in engine.state.output:
            mask: MetaTensor = output["pred"]
            source = str(mask.meta[ImageMetaKey.FILENAME_OR_OBJ])
            mask_path = Path(mask.meta["saved_to"])
            classes = torch.as_tensor(mask)[0]
            voxel_ml = find_voxel_ml(mask.affine)
            row: dict[str, Any] = {"image": source, "mask": str(mask_path)}
            for index, name in enumerate(self.class_names[1:], start=1):
                voxels = int((classes == index).count_nonzero())
                row |= {f"{name}_voxels": voxels, f"{name}_ml": round(voxels * voxel_ml, 3)}
            row["cut_off"] = reaches_border(mask)
            volumes = ", ".join(f"{name} {row[f'{name}_ml']:.0f} ml" for name in self.class_names[1:])
            volumes += ", cut off by the image's border" if row["cut_off"] else ""
            logger.info("%s: %s -> %s", source, volumes, mask_path)
            if self.preview:
                image = self.load_image(source)
                picture = mask_path.with_name(f"{output_name(mask_path)}.png")
                title = f"{output_name(source)}: {volumes}"
                draw_preview(image, classes, mask.affine, self.class_names, picture, title)
            row |= next((failure for failure in self.failures if failure["image"] == source), {})
            self.records.write(row)  # when all of it is done
            self.records.write_tables(at_once=False)
