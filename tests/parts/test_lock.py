"""The image's lock files and its bill of materials are in step with `pyproject.toml`, without asking anybody.

`make audit` asks a resolver and an advisory service, where they are reached.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
#: The image's Python; a requirement for another one is none.
IMAGE = {"python_version": "3.11", "python_full_version": "3.11.0", "sys_platform": "linux", "extra": ""}
#: Of each package, the flaws that are known, by the release that mends them.
ADVISORIES: dict[str, dict[str, list[str]]] = tomllib.loads((ROOT / ".ci/advisories.toml").read_text(encoding="utf-8"))
BILL: dict[str, Any] = json.loads((DEPLOY / "sbom.cdx.json").read_text(encoding="utf-8"))
LOCKS = {"requirements.lock": PROJECT["project"]["dependencies"], "build.lock": PROJECT["build-system"]["requires"]}


def pinned(lock: str) -> dict[str, tuple[str, list[str]]]:
    """Return each package's version and hashes."""
    text = re.sub(r" *\\\n *", " ", (DEPLOY / lock).read_text(encoding="utf-8"))
    found = {}
    for line in text.splitlines():
        name, version, rest = re.fullmatch(r"([\w.-]+)==(\S+)((?: --hash=\S+)*)", line).groups()  # type: ignore[union-attr]
        found[canonicalize_name(name)] = (version, re.findall(r"--hash=sha256:([0-9a-f]{64})(?= |$)", rest))
    return found


def misfits(requirements: Iterable[str], pins: dict[str, tuple[str, list[str]]]) -> list[str]:
    """Return the requirements that no pin meets."""
    wanted = [one for one in map(Requirement, requirements) if one.marker is None or one.marker.evaluate(IMAGE)]
    met = {str(one) for one in wanted if one.specifier.contains(pins.get(canonicalize_name(one.name), ("0.dev0",))[0])}
    return [str(one) for one in wanted if str(one) not in met]


@pytest.mark.parametrize("lock", LOCKS)
def test_each_requirement_is_met_by_a_pin(lock: str) -> None:
    assert misfits(LOCKS[lock], pinned(lock)) == []
    assert misfits(["celery>=99", "nobody-knows-it>=0"], pinned(lock)) == ["celery>=99", "nobody-knows-it>=0"]


def flaws(pins: dict[str, tuple[str, list[str]]]) -> list[str]:
    """Return what is known against pinned versions."""
    return [
        f"{name} {version}: {flaw}"
        for name, (version, _) in pins.items()
        for mended, found in ADVISORIES.get(name, {}).items()
        for flaw in found
        if Version(version) < Version(mended)
    ]


def test_no_pinned_version_has_a_flaw_that_the_kept_list_knows() -> None:
    pins = pinned("requirements.lock")

    assert flaws(pins) == []
    assert flaws({"tornado": ("6.5.4", [])}) == [
        f"tornado 6.5.4: CVE-2026-{n}" for n in (31958, 35536, 49853, 49854, 49855, 82397)
    ]
    assert ADVISORIES.keys() <= pins.keys()


@pytest.mark.parametrize("lock", LOCKS)
def test_each_pin_is_one_version_with_hashes_and_comes_from_no_other_place(lock: str) -> None:
    lines = (DEPLOY / lock).read_text(encoding="utf-8").splitlines()

    assert len([line for line in lines if not line.startswith(" ")]) == len(pinned(lock))
    assert [name for name, (_, hashes) in pinned(lock).items() if not hashes] == []
    assert not [line for line in lines if "://" in line or "--index" in line or " @ " in line]


def test_the_bill_of_materials_lists_exactly_what_the_lock_file_has() -> None:
    listed = {canonicalize_name(one["name"]): one["version"] for one in BILL["components"]}

    assert listed == {name: version for name, (version, _) in pinned("requirements.lock").items()}
    assert (BILL["bomFormat"], BILL["metadata"]["component"]["name"]) == ("CycloneDX", PROJECT["project"]["name"])
    assert BILL["metadata"]["component"]["version"] == PROJECT["project"]["version"]
    assert {one["purl"] for one in BILL["components"]} == {f"pkg:pypi/{n}@{v}" for n, v in listed.items()}


def test_each_pin_is_needed_by_the_package_or_by_another_pin() -> None:
    needs = {one["ref"]: one.get("dependsOn", []) for one in BILL["dependencies"]}
    reached, due = set(), [BILL["metadata"]["component"]["bom-ref"]]
    while due:
        one = due.pop()
        if one not in reached:
            reached.add(one)
            due += needs[one]

    assert reached == needs.keys()
    assert len(needs) == len(BILL["components"]) + 1


def test_the_image_installs_nothing_that_is_not_in_the_lock_files() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    installs = [line for line in text.splitlines() if re.search(r"\bpip\b.*\b(install|wheel)\b", line)]

    assert len(installs) == 4
    assert [line for line in installs if "--require-hashes" not in line and "--no-deps" not in line] == []
    assert sum("--no-index" in line or "--no-build-isolation" in line for line in installs) == 2
    passed = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {f"!deploy/{lock}" for lock in LOCKS} <= set(passed)
