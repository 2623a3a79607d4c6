"""Make, or check, what the image is made of: `make lock`, `make audit`.

The lock files pin each package by the hashes of its files. The bill of materials (CycloneDX) lists the same packages
with their licences and what needs what. The tools come from a venv of their own, so that nothing depends on them.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = Path(sys.executable).parent
LOCK, BUILD, BILL = (ROOT / "deploy" / name for name in ("requirements.lock", "build.lock", "sbom.cdx.json"))
#: What the image's Python is: the oldest that is supported, on Linux.
TARGET = ("--python-version=3.11", "--python-platform=linux", "--generate-hashes", "--no-header", "--quiet")
#: uv's exit code where no set of versions fits; another one says that it could not find out.
NO_SOLUTION = 1


def main() -> int:
    """Make the files anew, or with `--check` say what is wrong with those that are there."""
    if sys.argv[1:] == ["--check"]:
        return max(resolves(), audit())
    for lock, requirements in wanted().items():
        resolve(lock, requirements, "--upgrade")
    BILL.write_text(json.dumps(bill_of_materials(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    return 0


def wanted() -> dict[Path, str]:
    """Return the requirements of each lock file: of the package, and of its build."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return {LOCK: lines(project["project"]["dependencies"]), BUILD: lines(project["build-system"]["requires"])}


def lines(requirements: list[str]) -> str:
    """Return requirements as a file has them."""
    return "\n".join(requirements) + "\n"


def resolve(lock: Path, requirements: str, *options: str) -> int:
    """Pin requirements; versions that the file has already are kept, where nothing else is asked for."""
    command = [TOOLS / "uv", "pip", "compile", *TARGET, "--no-annotate", *options, "-o", lock, "-"]
    return subprocess.run(command, input=requirements, text=True, check="--upgrade" in options).returncode


def resolves() -> int:
    """Return 1 if a resolver that starts at the pinned versions does not end there."""
    wrong = 0
    for lock, requirements in wanted().items():
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(lock, folder))
            code = resolve(copy, requirements)
            if code not in (0, NO_SOLUTION):
                print(f"{lock.name}: the package index is not reached; tests/parts/test_lock.py is all that is checked")
                continue
            if code == NO_SOLUTION or pins(copy) != pins(lock):
                print(f"{lock.name} is not what pyproject.toml resolves to: run make lock")
                wrong = 1
    return wrong


def pins(lock: Path) -> list[str]:
    """Return each `name==version` of a lock file."""
    return [line.split(" ")[0] for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]


def audit() -> int:
    """Return 1 if a pinned version has a vulnerability that is known."""
    command = [TOOLS / "pip-audit", "--disable-pip", "--require-hashes", "-r", LOCK, "-f", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except ValueError:
        print(f"pip-audit does not reach its service: {done.stderr.strip().splitlines()[-1:]}")
        return 0
    flaws = [f"{one['name']} {one['version']}: {flaw['id']}" for one in found for flaw in one.get("vulns", ())]
    asked = sum("vulns" in one for one in found)
    print(
        "\n".join(flaws)
        or f"pip-audit: no flaw is known of {asked} packages; of {len(found) - asked} it learned nothing "
        "(tests/parts/test_lock.py compares all with .ci/advisories.toml)"
    )
    return 1 if flaws else 0


def bill_of_materials() -> dict[str, object]:
    """Return the bill of an environment that the lock file made; without addresses, which change with no version."""
    with tempfile.TemporaryDirectory() as folder:
        place, out = Path(folder) / "venv", Path(folder) / "bill.json"
        run("uv", "venv", "--quiet", "--python", sys.executable, place)
        run("uv", "pip", "install", "--quiet", "--python", place / "bin" / "python", "--require-hashes", "-r", LOCK)
        options = ("--pyproject", ROOT / "pyproject.toml", "--output-reproducible", "--of", "JSON", "-o", out)
        run("cyclonedx-py", "environment", *options, place / "bin" / "python")
        return without_addresses(json.loads(out.read_text(encoding="utf-8")))


def run(tool: str, *arguments: str | Path) -> None:
    """Run one of the tools, to a good end."""
    subprocess.run([TOOLS / tool, *arguments], check=True, timeout=600)


def without_addresses(value: object) -> object:
    """Return a part of the bill of materials without where each package is documented and discussed."""
    if isinstance(value, list):
        return [without_addresses(item) for item in value]
    if isinstance(value, dict):
        return {key: without_addresses(item) for key, item in value.items() if key != "externalReferences"}
    return value


if __name__ == "__main__":
    sys.exit(main())
