"""The image's files, put together by its own script, and how to run them the way Kubernetes will:
read-only, as 65532, with a volume, and without anything else of this machine's."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from support import ROOT

USER = 65532

ENTER = """
    set -e
    root="$1" data="$2"; shift 2
    mount --make-rprivate /
    mount --bind "$root" "$root"
    mount --bind "$data" "$root/var/lib/everwire"
    mount --rbind /proc "$root/proc"
    mount --rbind /dev "$root/dev"
    mount -o remount,bind,ro "$root"
    exec setpriv --no-new-privs \
        chroot --userspec=65532:65532 --groups= "$root" /usr/bin/everwire "$@"
"""


def runnable(what):
    """Whether it can be run here; where not, that is said, and in CI it is a failure."""
    if os.geteuid() == 0:
        return True
    print(f"SKIPPED: {what} needs root", file=sys.stderr)
    if os.environ.get("CI") == "true":
        raise AssertionError("a skip is a failure in CI")
    return False


class Image:
    """The files, in a folder of their own beside the volumes."""

    def __init__(self, case):
        self.folder = Path(tempfile.mkdtemp(prefix="everwire-image-"))
        case.addClassCleanup(shutil.rmtree, self.folder)
        self.root = self.folder / "root"
        binary = os.environ["EVERWIRE_BIN"]
        subprocess.run([ROOT / "deploy/docker/rootfs", binary, self.root], check=True)

    def prepare(self, files):
        """Adds what the second COPY of the Dockerfile makes, and what a kubelet puts there."""
        (self.root / "var/lib/everwire").mkdir()
        for path, data in files.items():
            target = self.root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)

    def volume(self, name):
        """An empty volume of its own, owned as with fsGroup."""
        data = self.folder / name
        data.mkdir()
        os.chown(data, USER, USER)
        return data

    def start(self, volume, words, stderr=None):
        """The entry point in a mount namespace of its own, the volume where the chart mounts it."""
        argv = ["unshare", "--mount", "sh", "-c", ENTER, "sh", self.root, volume, *words]
        env = {"PATH": os.environ["PATH"]}
        return subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=stderr, text=True)
