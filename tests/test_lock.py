"""The lock file has an exact version and the sums of every package, and those versions that the requirements pin."""

import re

from packaging.markers import Marker

from tests import ROOT

PIN = re.compile(r"([\w.-]+)==([\w.]+)(?: *; *(.+?))?(?: \\)?")
PYTHONS = ("3.10", "3.11", "3.12")


def read_pins(name):
    """Return the (package, version, marker) of every line that is not a comment or a sum; each must be exact."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = [PIN.fullmatch(line) for line in lines if line and not line.lstrip().startswith(("#", "--hash="))]
    assert all(pins), name
    return [(match[1].lower().replace("_", "-"), match[2], match[3]) for match in pins]


def versions(name, python, platform="linux", machine="x86_64"):
    """Return package → version that the file gives on such a computer."""
    environment = {"python_version": python, "python_full_version": f"{python}.0", "sys_platform": platform}
    environment |= {"platform_machine": machine, "platform_system": {"linux": "Linux", "win32": "Windows"}[platform]}
    pins = [pin for pin in read_pins(name) if pin[2] is None or Marker(pin[2]).evaluate(environment)]
    found = {package: version for package, version, _ in pins}
    assert len(found) == len(pins), "a package has two versions"
    return found


def test_the_lock_has_the_pinned_versions_on_every_python():
    for python in PYTHONS:
        for platform in ("linux", "win32"):
            locked = versions("requirements.lock", python, platform)
            for file in ("requirements.txt", "requirements-dicom.txt", "requirements-test.txt"):
                for package, version in versions(file, python, platform).items():
                    assert locked.get(package) == version, f"{package}: run `make lock`"


def test_the_lock_has_what_the_pinned_packages_need():
    locked = versions("requirements.lock", "3.11")
    assert {"sympy", "mpmath", "grpcio", "protobuf", "contourpy", "werkzeug", "itk-core"} <= locked.keys()


def test_every_package_of_the_lock_has_its_sums_and_no_file_or_address():
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    packages = re.split(r"\n(?=\w)", "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#")))
    assert len(packages) == len(read_pins("requirements.lock")) > 80
    for package in packages:
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", package), package
    assert not re.search(r"://|^-|@|index", text, re.MULTILINE)
