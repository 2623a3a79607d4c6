"""Start a process as its systemd unit says, without systemd: its command, environment, folder, umask and user.

Only folders, ports and the users' numbers are a test's own.
"""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.servers.deploying import DEPLOY, PATH, child

_SPECIFIER = re.compile("%[%i]")
#: Nobody of this machine has this number: the user and the group `pipeline` of the units.
PIPELINE = 61_001
#: The web application's user, who is a member of the group `pipeline`.
WEB = 61_002


@dataclass(frozen=True)
class Host:
    """A machine on which deploy/README.md was followed, in a folder of its own.

    Attributes:
        opt: stands for /opt/pipeline.
        etc: stands for /etc/pipeline.
        state: stands for /var/lib/pipeline.
        ports: by the address in the shipped files, the port of this machine.
    """

    opt: Path
    etc: Path
    state: Path
    ports: dict[str, int]

    def local(self, text: str) -> str:
        """Return a line of a shipped file with this machine's folders and ports."""
        for shipped, port in self.ports.items():
            text = text.replace(shipped, f"127.0.0.1:{port}" if ":" in shipped else str(port))
        return (
            text.replace("/opt/pipeline", str(self.opt))
            .replace("/etc/pipeline", str(self.etc))
            .replace("/var/lib/pipeline", str(self.state))
        )

    def environment(self, name: str) -> dict[str, str]:
        """Return what an environment file says."""
        lines = (self.etc / name).read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if line and line[0] != "#")

    def unit(self, name: str, instance: str, log: Path, ready: Any, **more: str) -> AbstractContextManager[None]:
        """Run a unit until the end of the block; enter when it is ready. *more* is of the environment."""
        said = _read(DEPLOY / "systemd" / name, instance)
        environ = self._environ() | more
        for line in said["Environment"]:
            environ |= dict(pair.split("=", 1) for pair in shlex.split(self.local(line)))
        for file in said["EnvironmentFile"]:
            environ |= self.environment(Path(file).name)
        assert (said["User"], said["Group"]) == (["pipeline"], ["pipeline"])
        if said["StateDirectory"]:  # systemd gives it user and mode at each start
            assert said["StateDirectory"] == ["pipeline"]
            os.chown(self.state, PIPELINE, PIPELINE)
            self.state.chmod(int(said["StateDirectoryMode"][0], 8))
        command = [_filled(word, environ) for word in shlex.split(self.local(said["ExecStart"][0]))]
        who = _as(PIPELINE, umask=int(said["UMask"][0], 8))
        return child(command, log, ready, env=environ, cwd=Path(said["WorkingDirectory"][0]), **who)

    def _environ(self) -> dict[str, str]:
        return {"PATH": PATH, "HOME": "/nonexistent", "LANG": "C.UTF-8", "LD_LIBRARY_PATH": f"{self.opt}/lib"}

    def run(self, user: int, file: str, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command with an environment file as a user, in the folder `/`."""
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False, **self._of(user, file, more)
        )

    @contextmanager
    def on_terminal(self, user: int, file: str, *command: str) -> Iterator[int]:
        """Run a command as `run` does, on a terminal: what it writes is read from the number, its keys are written."""
        ours, theirs = pty.openpty()
        options = self._of(user, file, {"TERM": "xterm", "COLUMNS": "160", "LINES": "50"})
        with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, **options) as process:
            os.close(theirs)
            try:
                yield ours
                assert process.wait(30) == 0
            finally:
                process.kill()
                os.close(ours)

    def _of(self, user: int, file: str, more: dict[str, str]) -> dict[str, Any]:
        environ = self._environ() | {"PYTHONSAFEPATH": "1"} | self.environment(file)
        environ |= {"PIPELINE_CONFIG": f"{self.etc}/pipeline.toml"} | more
        return {"env": environ, "cwd": "/", **_as(user)}


def install_pipeline(opt: Path) -> None:
    """Make what `python3 -m venv` and `pip install` make, of the Python and the packages that this process has."""
    library = opt / "lib" / f"python3.{sys.version_info.minor}"
    (opt / "bin").mkdir(parents=True)
    (opt / "lib").mkdir()
    python, ours = opt / "bin" / "python", Path(os.path.realpath(sys.executable))
    if all(folder.stat().st_mode & 1 for folder in ours.parents):
        python.symlink_to(ours)
        (opt / "pyvenv.cfg").write_text(f"home = {ours.parent}\n")
    else:  # a Python in root's home, which the units' users do not reach
        shutil.copy(ours, python)
        for shared in Path(sysconfig.get_config_var("LIBDIR")).glob("libpython*.so*"):
            shutil.copy(shared, opt / "lib")
        left_out = shutil.ignore_patterns("test", "site-packages", "idlelib", "config-*", "ensurepip", "lib2to3")
        shutil.copytree(sysconfig.get_path("stdlib"), library, ignore=left_out)
    (library / "site-packages").mkdir(parents=True)
    (library / "site-packages" / "ours.pth").write_text("\n".join([*site.getsitepackages(), str(DEPLOY.parent)]))
    for name, module in (("celery", "celery.__main__"), ("pipeline", "pipeline.cli")):
        script = opt / "bin" / name
        script.write_text(f"#!{opt}/bin/python\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
        script.chmod(0o755)


def _as(user: int, umask: int = 0o007) -> dict[str, Any]:
    return {"user": user, "group": user, "extra_groups": [PIPELINE], "umask": umask}


def environment_of(unit: str) -> dict[str, str]:
    """Return what a unit says of its process's environment, but for what names its configuration."""
    lines = _read(DEPLOY / "systemd" / unit, "")["Environment"]
    pairs = dict(pair.split("=", 1) for line in lines for pair in shlex.split(line))
    return {name: value for name, value in pairs.items() if name not in ("PIPELINE_CONFIG", "CONCURRENCY")}


def _read(unit: Path, instance: str) -> defaultdict[str, list[str]]:
    """Return what a unit's section [Service] says, by key."""
    said = defaultdict[str, list[str]](list)
    service = unit.read_text().partition("\n[Service]\n")[2].partition("\n[Install]\n")[0]
    for line in service.splitlines():
        key, found, value = line.partition("=")
        if found and line[0] != "#":
            said[key].append(_SPECIFIER.sub(lambda one: "%" if one[0] == "%%" else instance, value))
    return said


def _filled(word: str, environ: dict[str, str]) -> str:
    for name, value in environ.items():
        word = word.replace(f"${{{name}}}", value)
    return word
