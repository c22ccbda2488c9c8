"""The image. There is no engine here that could build it, so the parts are tried: a linter reads
the Dockerfile, its last stage is checked word by word, and the files of that stage, put together
by the same script, run the real binary the way Kubernetes will: read-only, as 65532, alone."""

import json
import re
import signal
import stat
import subprocess
import sys
import unittest
import urllib.request
from pathlib import Path

from image import USER, Image, runnable
from support import ROOT

DOCKERFILE = ROOT / "deploy/docker/Dockerfile"


def stages():
    """Instructions of each stage, continuation lines joined, comments gone."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    out = []
    for line in filter(None, (line.strip() for line in text.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            out.append([])
        out[-1].append((word, rest.strip()))
    return out


class Dockerfile(unittest.TestCase):
    def test_the_linter_finds_nothing(self):
        linter = Path(sys.executable).parent / "hadolint"
        done = subprocess.run([linter, DOCKERFILE], capture_output=True, text=True)
        self.assertEqual((done.returncode, done.stdout), (0, ""), done.stderr)

    def test_the_last_stage_runs_one_program_as_nobody(self):
        build, image = stages()
        self.assertEqual(image[0], ("FROM", "scratch"))
        words = [word for word, _ in image]
        self.assertNotIn("RUN", words)
        self.assertNotIn("CMD", words)
        self.assertEqual(dict(image)["USER"], f"{USER}:{USER}")
        self.assertEqual(json.loads(dict(image)["ENTRYPOINT"]), ["/usr/bin/everwire"])
        copies = [rest for word, rest in image if word == "COPY"]
        self.assertEqual(copies, ["--from=build /image /", "--from=build --chown=65532:65532 /data /var/lib/everwire"])

    def test_the_tool_chain_is_one(self):
        """The base's tag, what rustup is told, and what the workspace asks at least."""
        [image] = [rest for word, rest in stages()[0] if word == "FROM"]
        version = re.fullmatch(r"rust:(\d+\.\d+)-bookworm AS build", image)[1]
        self.assertIn(f"RUSTUP_TOOLCHAIN={version}", DOCKERFILE.read_text())
        least = re.search(r'^rust-version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        number = lambda text: tuple(map(int, text.split(".")))
        self.assertGreaterEqual(number(version), number(least))

    def test_the_build_gets_the_workspace_and_no_more(self):
        ignore = (ROOT / ".dockerignore").read_text().split("\n")
        self.assertIn("*", ignore)
        given = {line[1:].rstrip("/") for line in ignore if line.startswith("!")}
        manifest = (ROOT / "Cargo.toml").read_text()
        members = json.loads(re.search(r"^members = (\[.*\])$", manifest, re.M)[1])
        needed = {member.split("/")[0] for member in members}
        needed |= {"Cargo.toml", "Cargo.lock", ".cargo", "proto", "deploy/docker/rootfs"}
        self.assertLessEqual(needed, given)
        for path in given:
            self.assertTrue((ROOT / path).exists(), path)


class Files(unittest.TestCase):
    """What the script puts into the image, with the debug binary of this build."""

    @classmethod
    def setUpClass(cls):
        cls.image = Image(cls)
        cls.root = cls.image.root

    def test_there_is_one_program_and_no_shell(self):
        programs = [
            path.relative_to(self.root).as_posix()
            for path in self.root.rglob("*")
            if path.is_file() and path.stat().st_mode & stat.S_IXUSR and ".so" not in path.name
        ]
        self.assertEqual(programs, ["usr/bin/everwire"])

    def test_nothing_has_more_rights_than_its_user(self):
        for path in self.root.rglob("*"):
            self.assertFalse(path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID), path)
            if path.is_file():
                self.assertFalse(path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH), path)

    def test_every_library_has_its_package_and_licence(self):
        libraries = [path for path in self.root.rglob("*.so*")]
        self.assertTrue(any("libstdc++" in path.name for path in libraries))
        packages = [path.name for path in (self.root / "var/lib/dpkg/status.d").iterdir()]
        self.assertLessEqual({"libc6", "libstdc++6"}, set(packages))
        for package in packages:
            self.assertTrue((self.root / "usr/share/doc" / package / "copyright").is_file())

    def test_it_runs_read_only_as_nobody(self):
        if not runnable("running the image's files"):
            return
        data = self.image.volume("data")
        self.image.prepare({"etc/hosts": b"127.0.0.1 localhost node.example\n"})
        any_port = [f"--{port}=127.0.0.1:0" for port in ("grpc", "http", "admin")]
        words = ["dev", "--data=/var/lib/everwire/data", "--log-level=error", *any_port]
        server = self.image.start(data, words)
        try:
            ready = json.loads(server.stdout.readline())
            with urllib.request.urlopen(f"http://{ready['admin']}/readyz", timeout=60) as answer:
                self.assertEqual(answer.status, 200)
            # A name, so that the resolver's files are there too.
            port = ready["grpc"].rsplit(":", 1)[1]
            token = "--token-file=/var/lib/everwire/data/token"
            asked = self.image.start(data, ["status", "--json", f"--addr=node.example:{port}", token])
            out, _ = asked.communicate(timeout=60)
            self.assertEqual(asked.returncode, 0)
            self.assertIn("shards", json.loads(out))
        finally:
            server.send_signal(signal.SIGTERM)
            self.assertEqual(server.wait(timeout=60), 0)
            server.stdout.close()
        owners = {path.stat().st_uid for path in data.rglob("*")}
        self.assertEqual(owners, {USER})


if __name__ == "__main__":
    unittest.main()
