"""Write LiTS-named CTs of made-up patients: ``python -m scripts.phantom --output_dir D --cases N --seed S``."""

from scripts.commands import run_command
from scripts.phantom.write import write_phantoms


def _write_and_say_where(
    output_dir: str,
    cases: int = 20,
    seed: int = 0,
    size: tuple[int, int, int] = (128, 128, 64),
    variety: str = "usual",
    spacing_mm: float | None = None,
    processes: int = 1,
) -> None:
    """Write LiTS-named CTs of made-up patients, with their liver and tumours labelled.

    Args:
        output_dir: folder for volume-N.nii.gz and segmentation-N.nii.gz.
        cases: how many patients.
        seed: the same seed gives the same patients.
        size: voxels along the left-right, back-front and foot-head axis; of the usual variety only.
        variety: "usual" for bellies as LiTS shows them; "wide" for everything from head to thighs in any scanner, to
            train on, with a phantom-N.json that describes each.
        spacing_mm: of the voxels along every axis; None suits the body (usual), or is 2 (wide).
        processes: how many work at the same time; the files are the same.
    """
    spacing = None if spacing_mm is None else (spacing_mm,) * 3
    paths = write_phantoms(output_dir, cases, seed, size, spacing, variety, processes)
    many = "1 case is" if len(paths) == 1 else f"{len(paths)} cases are"
    print(f"{many} in {paths[0][0].parent} (volume-N.nii.gz, segmentation-N.nii.gz)")


def main() -> None:
    run_command(_write_and_say_where)


if __name__ == "__main__":
    main()
