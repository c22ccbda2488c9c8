"""The chart's pods, without Kubernetes: each container's own arguments, in the image's files, at
the addresses that the chart gives them. They must find each other and serve."""

import json
import os
import random
import shutil
import signal
import subprocess
import time
import unittest
import urllib.error
import urllib.request
from pathlib import Path

from image import Image, runnable
from support import container, one, rendered

# Generous: a loaded machine of two cores, a debug binary.
SOON = 180
NAMES = [f"rel-everwire-node-{ordinal}" for ordinal in range(3)]


def wait(what, done):
    end = time.monotonic() + SOON
    while not done():
        if time.monotonic() > end:
            raise AssertionError(f"not within {SOON} s: {what}")
        time.sleep(0.1)


def everwire(*words):
    done = subprocess.run(
        [os.environ["EVERWIRE_BIN"], *words], env={}, capture_output=True, text=True, timeout=SOON
    )
    if done.returncode != 0:
        raise AssertionError(f"everwire {words}: {done.stderr}")
    return done.stdout


class Pod:
    """One container: its words, its address, its volume. It comes back under the same name."""

    def __init__(self, image, workload, name, addr):
        self.image, self.name, self.addr = image, name, addr
        spec = container(workload)
        self.words = [w.replace("$(POD_NAME)", name).replace("0.0.0.0", addr) for w in spec["args"]]
        ports = {port["name"]: port["containerPort"] for port in spec["ports"]}
        self.admin = f"http://{addr}:{ports['admin']}"
        self.probes = {p: spec[f"{p}Probe"]["httpGet"]["path"] for p in ("liveness", "readiness")}
        self.volume, self.log = image.volume(name), image.folder / f"{name}.log"
        self.process = None

    def start(self):
        with open(self.log, "a") as log:
            self.process = self.image.start(self.volume, self.words, stderr=log)

    def probe(self, which):
        """What the kubelet sees; `None` while nobody answers."""
        if self.process.poll() is not None:
            raise AssertionError(f"{self.name} ended: {self.log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(self.admin + self.probes[which], timeout=30) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None

    def ready(self):
        return self.probe("readiness") == 200

    def end(self, how):
        if self.process is None or self.process.poll() is not None:
            return None
        self.process.send_signal(how)
        code = self.process.wait(timeout=SOON)
        self.process.stdout.close()
        return code

    def lose_disk(self):
        self.end(signal.SIGKILL)
        for path in self.volume.iterdir():
            shutil.rmtree(path)


class Pods(unittest.TestCase):
    def setUp(self):
        if not runnable("running the chart's pods"):
            self.skipTest("no root")
        self.image = Image(type(self))
        found = rendered("least")
        # All of 127/8 is this machine; two tests at once must not meet.
        network = f"127.{random.randint(1, 254)}.{random.randint(0, 254)}"
        nodes, edge = one(found, "StatefulSet", "-node"), one(found, "Deployment", "-edge")
        domain = "rel-everwire-peers.prod.svc.cluster.local"
        hosts = "".join(f"{network}.{n + 1} {name}.{domain}\n" for n, name in enumerate(NAMES))
        self.image.prepare({"etc/hosts": hosts.encode(), **self.secrets()})
        self.nodes = [Pod(self.image, nodes, name, f"{network}.{n + 1}") for n, name in enumerate(NAMES)]
        self.edge = Pod(self.image, edge, "rel-everwire-edge-x", f"{network}.9")
        for pod in [*self.nodes, self.edge]:
            self.addCleanup(pod.end, signal.SIGKILL)

    def secrets(self):
        """The files at which the volumes of the chart's secrets are mounted."""
        key = self.image.folder / "auth"
        everwire("token", f"--new-key={key}")
        mint = ["token", f"--key={key}", "--ttl=1h", "--participant=p"]
        operator = ["--namespace=default", "--kind=operator", "--allow=*=operate"]
        edge = ["--namespace=*", "--kind=edge", "--allow=*=relay"]
        self.token = everwire(*mint, *operator).strip()
        return {
            "etc/everwire/auth/auth.pub": Path(f"{key}.pub").read_bytes(),
            "etc/everwire/token/token": everwire(*mint, *edge).encode(),
        }

    def status(self, node):
        out = everwire("status", "--json", f"--addr={node.addr}:7400", f"--token={self.token}")
        return json.loads(out)

    def test_pods_form_a_cluster_and_a_lost_disk_comes_back_to_it(self):
        first, *others = self.nodes
        first.start()
        wait("node 0 is alive", lambda: first.probe("liveness") == 200)
        self.assertEqual(first.probe("readiness"), 503, "alone it forms nothing")
        self.assertEqual(first.end(signal.SIGTERM), 0, "nor does it wait for the others to stop")
        first.start()
        for node in others:
            node.start()
        wait("three nodes are ready", lambda: all(node.ready() for node in self.nodes))
        status = self.status(first)
        cluster = status["cluster"]
        old = next(node["id"] for node in status["nodes"] if node["name"] == NAMES[0])
        self.edge.start()
        wait("the edge is ready", self.edge.ready)

        first.lose_disk()
        first.start()
        wait("node 0 is ready again", first.ready)
        # A rolling update that waited for this may go on: nobody counts on what was lost.
        for shard in self.status(first)["shards"]:
            self.assertEqual(len(shard["replicas"]), 3, shard)
            self.assertNotIn(old, shard["replicas"], shard)
        self.assertEqual({self.status(node)["cluster"] for node in self.nodes}, {cluster})

        self.assertEqual(self.edge.end(signal.SIGTERM), 0)
        for node in self.nodes:
            self.assertEqual(node.end(signal.SIGTERM), 0)


if __name__ == "__main__":
    unittest.main()
