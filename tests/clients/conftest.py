"""The small CT and the small bundle of `tests.clients.small`, made once, and their mask by ``monai.bundle run``."""

import pytest

from tests.clients.small import OBLIQUE, copy_bundle, segment, write_bundle, write_scan


@pytest.fixture(scope="session")
def scan(tmp_path_factory):
    """An LPS CT as DICOM and as NIfTI."""
    return write_scan(tmp_path_factory.mktemp("scan"))


@pytest.fixture(scope="session")
def oblique_scan(tmp_path_factory):
    """A CT whose rows and columns are turned in their plane."""
    return write_scan(tmp_path_factory.mktemp("oblique"), axes=OBLIQUE, seed=4)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """Return a function from a target to a bundle with weights for it."""
    made = {}

    def get(target="liver"):
        if target not in made:
            made[target] = write_bundle(tmp_path_factory.mktemp("bundle") / "mpunet_liver_ct", target)
        return made[target]

    return get


@pytest.fixture
def elsewhere(tmp_path):
    """A bundle that has no weights, but the settings of others."""
    return copy_bundle(tmp_path / "elsewhere")


@pytest.fixture(scope="session")
def reference(tmp_path_factory, bundle):
    """Return a function from an image and a target to the mask of ``monai.bundle run``."""
    made = {}

    def get(image, target="liver"):
        if (image, target) not in made:
            made[image, target] = segment(bundle(target), image, tmp_path_factory.mktemp("reference"))
        return made[image, target]

    return get
