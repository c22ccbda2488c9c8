"""What the tests of deploy/ share: real helm, value sets, and what helm renders from them."""

import copy
import functools
import json
import os
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/chart/everwire"
EXAMPLES = ROOT / "deploy/chart/examples"
HELM = os.environ["HELM"]
# Oldest and newest that the chart is for; the newest is what we have schemas of.
OLDEST, NEWEST = "1.29", "1.37"

# The least that the chart needs.
LEAST = {
    "auth": {"secretName": "auth"},
    "node": {"insecure": True},
    "edge": {"insecure": True, "token": {"secretName": "edge-token"}},
}


def merged(base, more):
    """Two trees of values, the second over the first, as helm lays them."""
    out = copy.deepcopy(base)
    for key, value in more.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else copy.deepcopy(value)
    return out


def tls(name):
    return {"insecure": False, "tls": {"secretName": name}}


NODE_TLS = merged(tls("grpc-tls"), {"peerTls": {"secretName": "peer-tls"}})
NODE_CA = {"nodeCa": {"secretName": "grpc-tls"}}
SCHEDULING = {
    "podAnnotations": {"example.com/a": "b"},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "dedicated", "operator": "Exists", "effect": "NoSchedule"}],
    "priorityClassName": "important",
}
ANYWHERE = {"type": "LoadBalancer", "annotations": {"example.com/idle": "120"}}

# Every road through the templates. The name says what is different from the least.
VALUE_SETS = {
    "least": {},
    "single": {"node": {"replicas": 1}},
    "five nodes": {"node": {"replicas": 5}},
    "six nodes": {"node": {"replicas": 6}},
    "grpc tls": {"node": tls("grpc-tls") | {"insecure": True}, "edge": NODE_CA},
    "peer tls": {"node": {"peerTls": {"secretName": "peer-tls"}}},
    "all tls": {"node": NODE_TLS, "edge": merged(tls("edge-tls"), NODE_CA)},
    "other secrets": {
        "auth": {"secretName": "keys", "key": "jwt.pem"},
        "edge": {"token": {"secretName": "t", "key": "edge.jwt"}},
    },
    "no edges": {"edge": {"enabled": False, "token": {"secretName": ""}}},
    "many edges": {"edge": {"replicas": 20, "origins": ["https://a.example", "http://b:81"]}},
    "one host": {"node": {"hostSpread": "soft"}},
    "ipv6": {"listen": "[::]", "clusterDomain": "k8s.example.org"},
    "air-gapped": {
        "image": {
            "repository": "registry.local:5000/mirror/everwire",
            "digest": "sha256:" + "0f" * 32,
            "pullSecrets": ["pull"],
            "pullPolicy": "Always",
        }
    },
    "tag and logs": {
        "image": {"tag": "v9"},
        "log": {"format": "human", "level": "info,everwire_shard=debug"},
    },
    "scheduling": {"node": SCHEDULING, "edge": SCHEDULING},
    "load balancers": {"node": {"service": ANYWHERE}, "edge": {"service": {**ANYWHERE, "port": 443}}},
    "more arguments": {"node": {"extraArgs": ["--a=b: #c"]}, "edge": {"extraArgs": ["--d"]}},
    "no policies": {"networkPolicy": {"enabled": False}},
    "own policies": {
        "networkPolicy": {
            "grpcFrom": [],
            "httpFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "adminFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
            "extraEgress": [{"ports": [{"port": 443}]}],
        }
    },
    "other storage": {"node": {"storage": {"size": "1Ti", "className": "fast"}}},
}
# These choose the immutable claim themselves, as the values' comments say.
CHOOSE_STORAGE = {"other storage"}


def values(name):
    return merged(LEAST, VALUE_SETS[name])


def helm(command, tree, *more, kube=NEWEST):
    """Runs helm with values on stdin; gives the finished process."""
    argv = [HELM, *command, "--kube-version", f"{kube}.0", "--values", "-", *more]
    # JSON is YAML; and nothing of the caller's own helm may leak in.
    return subprocess.run(
        argv,
        input=json.dumps(tree),
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def template(tree, release="rel", kube=NEWEST):
    return helm(["template", release, str(CHART), "--namespace", "prod"], tree, kube=kube)


def objects(tree, release="rel", kube=NEWEST):
    """What helm renders, as trees."""
    done = template(tree, release, kube)
    if done.returncode != 0:
        raise AssertionError(f"helm: {done.stderr}")
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@functools.cache
def rendered(name):
    """A value set, rendered once for the newest Kubernetes."""
    return objects(values(name))


def one(found, kind, ending):
    """The single object of a kind whose name ends so."""
    [only] = [o for o in found if o["kind"] == kind and o["metadata"]["name"].endswith(ending)]
    return only


def workloads(found):
    return [o for o in found if o["kind"] in ("StatefulSet", "Deployment")]


def container(workload):
    [only] = workload["spec"]["template"]["spec"]["containers"]
    return only


def arguments(workload):
    """The container's flags; a repeated one as the list of all."""
    flags = {}
    for word in container(workload)["args"][1:]:
        name, _, value = word.partition("=")
        flags.setdefault(name, []).append(value)
    return flags
