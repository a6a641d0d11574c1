"""Makes one archive out of a checkout: the worker's wheel and every wheel it needs, hash-locked.

`build.py --source DIR --cache DIR --python 3.11 --machine x86_64` prints {"id": …, "archive": …, "built": …}.
The id is the version and a digest of everything that goes in, so that the same code has the same id on every
controller, and deploying it twice has nothing to do.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from packaging.requirements import Requirement  # ansible-core needs it, too

FILES = ("pyproject.toml", "README.md", "LICENSE", "requirements/base.txt")
PACKAGES = ("worker", "simulator")
OFFICIAL = ("manylinux_2_28", "manylinux_2_17", "manylinux2014", "manylinux_2_34", "manylinux_2_5", "manylinux1")
"""glibc 2.28 is older than that of any family we know; 2.34 is CentOS Stream 9's own."""


def main() -> None:
    """Read the arguments, build if need be, print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--python", help="of the host, such as 3.11; without it only the id is printed")
    parser.add_argument("--machine", default="x86_64")
    options = parser.parse_args()
    id = identify(options.source)
    answer: dict[str, object] = {"id": id}
    if options.python:
        archive = options.cache / f"{id}-cp{options.python.replace('.', '')}-{options.machine}.tar"
        answer |= {"archive": str(archive), "built": not archive.exists()}
        if not archive.exists():
            options.cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=options.cache) as work:
                build(options.source, Path(work), options.python, options.machine)
                pack(Path(work), archive)
    print(json.dumps(answer))  # noqa: T201


def sources(source: Path) -> list[Path]:
    """Every file that goes into a release, relative and sorted."""
    found = [Path(name) for name in FILES]
    for package in PACKAGES:
        found += (path.relative_to(source) for path in (source / package).rglob("*") if path.is_file())
    return sorted(path for path in found if "__pycache__" not in path.parts and path.suffix != ".pyc")


def identify(source: Path) -> str:
    """`VERSION-DIGEST`."""
    digest = hashlib.sha256()
    for path in sources(source):
        content = (source / path).read_bytes()
        digest.update(f"{path.as_posix()} {len(content)}\n".encode() + content)
    version = re.search(r'^version = "([^"]+)"', (source / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    if version is None:
        sys.exit(f"{source}/pyproject.toml has no version")
    return f"{version[1]}-{digest.hexdigest()[:10]}"


def build(source: Path, work: Path, python: str, machine: str) -> None:
    """The wheels and their list, in work/wheels."""
    copy, wheels = work / "source", work / "wheels"
    wheels.mkdir()
    for path in sources(source):
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / path, copy / path)
    pip("wheel", "--no-deps", "--wheel-dir", str(wheels), str(copy))
    platforms = [word for name in OFFICIAL for word in ("--platform", f"{name}_{machine}")]
    locked, wanted = copy / "requirements/base.txt", work / "wanted.txt"
    wanted.write_text("\n".join(applying(locked.read_text("utf-8"), python, machine)), "utf-8")
    pip("download", "--dest", str(wheels), "--no-deps", "--only-binary=:all:", "--require-hashes",
        "--python-version", python, "--implementation", "cp", *platforms, "--requirement", str(wanted))  # fmt: skip
    shutil.copyfile(locked, wheels / "requirements.txt")


def applying(locked: str, python: str, machine: str) -> list[str]:
    """What of a lock file hosts with any patch release of this Python need, without markers.

    pip goes by --python-version for wheels, but for markers by the Python it runs on: a controller with 3.11.7 would
    leave out what a host with 3.11.2 has to have.
    """
    names = {
        "implementation_name": "cpython",
        "os_name": "posix",
        "platform_machine": machine,
        "platform_python_implementation": "CPython",
        "platform_system": "Linux",
        "python_version": python,
        "sys_platform": "linux",
    }
    hosts = [{**names, "python_full_version": f"{python}.{patch}"} for patch in (0, 99)]
    wanted = []
    for line in locked.replace("\\\n", " ").splitlines():
        text, *hashes = line.split(" --hash=")
        if not text.strip() or text.startswith("#"):
            continue
        one = Requirement(text)
        if one.marker is None or any(one.marker.evaluate(host) for host in hosts):
            wanted.append(" --hash=".join([f"{one.name}{one.specifier}", *(hash.strip() for hash in hashes)]))
    return wanted


def pip(*words: str) -> None:
    """Run pip, quiet unless it fails."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
                          env={**os.environ, "PIP_NO_INPUT": "1"})  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-4000:]}")


def pack(work: Path, archive: Path) -> None:
    """The archive, complete or not at all. Wheels are compressed already."""
    part = work / "part.tar"
    with tarfile.open(part, "w") as tar:
        tar.add(work / "wheels", "wheels")
    part.replace(archive)


if __name__ == "__main__":
    main()
