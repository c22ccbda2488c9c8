"""The chart as helm renders it: valid objects, the invariants of operation, names for ever."""

import copy
import os
import re
import subprocess
import unittest

import kubernetes_validate
import kubernetes_validate.utils
import yaml

import support
from support import CHART, ROOT, VALUE_SETS, arguments, container, one, rendered, workloads

GOLDEN = ROOT / "tests/deploy/golden"


def fixed(found):
    """What Kubernetes does not let anybody change, and what lies on disks and in certificates."""
    nodes, edges = one(found, "StatefulSet", "-node"), None
    if any(o["kind"] == "Deployment" for o in found):
        edge = one(found, "Deployment", "-edge")
        edges = {"name": edge["metadata"]["name"], "selector": edge["spec"]["selector"]}
    spec = nodes["spec"]
    fields = ("serviceName", "podManagementPolicy", "selector", "volumeClaimTemplates")
    mounts = container(nodes)["volumeMounts"]
    services = {
        o["metadata"]["name"]: {"selector": o["spec"]["selector"], "headless": "clusterIP" in o["spec"]}
        for o in found
        if o["kind"] == "Service"
    }
    return {
        "nodes": {"name": nodes["metadata"]["name"]} | {field: spec[field] for field in fields},
        "data": [mount["mountPath"] for mount in mounts if mount["name"] == "data"],
        "folder": arguments(nodes)["--data"],
        "name": arguments(nodes)["--name"],
        "edges": edges,
        "services": services,
    }


class Rendered(unittest.TestCase):
    def test_helm_lints_every_value_set(self):
        for name in VALUE_SETS:
            with self.subTest(name):
                done = support.helm(["lint", "--strict", str(CHART)], support.values(name))
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_objects_are_valid_on_the_oldest_and_the_newest_kubernetes(self):
        for name in VALUE_SETS:
            for kube in (support.OLDEST, support.NEWEST):
                for found in support.objects(support.values(name), kube=kube):
                    with self.subTest(name, kube=kube, kind=found["kind"]):
                        kubernetes_validate.validate(found, kube, strict=True)

    def test_the_fullest_is_valid_on_every_kubernetes(self):
        versions = kubernetes_validate.utils.all_versions()
        versions = versions[versions.index(support.OLDEST + ".0") :]
        self.assertEqual(versions[-1], support.NEWEST + ".0")
        for kube in versions:
            for found in rendered("all tls"):
                kubernetes_validate.validate(found, kube, strict=True)

    def test_a_wrong_object_is_found(self):
        """The validator is not asleep."""
        wrong = copy.deepcopy(one(rendered("least"), "StatefulSet", "-node"))
        wrong["spec"]["podManagementPolcy"] = "Parallel"
        with self.assertRaises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(wrong, support.NEWEST, strict=True)

    def test_examples_render(self):
        examples = sorted(support.EXAMPLES.glob("*.yaml"))
        self.assertTrue(examples)
        for example in examples:
            with self.subTest(example.name):
                for found in support.objects(yaml.safe_load(example.read_text())):
                    kubernetes_validate.validate(found, support.NEWEST, strict=True)

    def test_the_default_image_is_this_release(self):
        release = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M)[1]
        image = container(one(rendered("least"), "StatefulSet", "-node"))["image"]
        self.assertEqual(image, f"everwire:{release}")

    def test_a_digest_beats_the_tag(self):
        for workload in workloads(rendered("air-gapped")):
            repository = "registry.local:5000/mirror/everwire"
            self.assertEqual(container(workload)["image"], f"{repository}@sha256:" + "0f" * 32)


def whatever_the_values(test):
    """A test of one rendering, for every value set."""

    def each(self):
        for name in VALUE_SETS:
            with self.subTest(name):
                test(self, rendered(name))

    return each


class Invariants(unittest.TestCase):
    """What must hold whatever the values are."""

    @whatever_the_values
    def test_nodes_start_and_stop_without_waiting_for_each_other(self, found):
        nodes = one(found, "StatefulSet", "-node")
        self.assertEqual(nodes["spec"]["podManagementPolicy"], "Parallel")
        peers = one(found, "Service", "-peers")["spec"]
        self.assertEqual(peers["clusterIP"], "None")
        self.assertIs(peers["publishNotReadyAddresses"], True)
        self.assertEqual(nodes["spec"]["serviceName"], "rel-everwire-peers")

    @whatever_the_values
    def test_one_node_at_a_time_is_disturbed(self, found):
        self.assertEqual(one(found, "PodDisruptionBudget", "-node")["spec"]["maxUnavailable"], 1)
        rolling = one(found, "StatefulSet", "-node")["spec"]["updateStrategy"]
        self.assertEqual(rolling, {"type": "RollingUpdate"})
        budgets = [o for o in found if o["kind"] == "PodDisruptionBudget"]
        self.assertEqual(len(budgets), len(workloads(found)))

    @whatever_the_values
    def test_probes_of_life_ask_for_the_process_alone(self, found):
        for workload in workloads(found):
            only = container(workload)
            paths = {p: only[f"{p}Probe"]["httpGet"]["path"] for p in ("startup", "liveness", "readiness")}
            expected = {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
            self.assertEqual(paths, expected)
            startup = only["startupProbe"]
            self.assertGreaterEqual(startup["periodSeconds"] * startup["failureThreshold"], 120)
            admin = [p["containerPort"] for p in only["ports"] if p["name"] == "admin"]
            self.assertTrue(arguments(workload)["--admin"][0].endswith(f":{admin[0]}"))

    @whatever_the_values
    def test_nothing_needs_a_shell(self, found):
        """No exec, no hooks, no init containers, no command in place of the image's own."""
        for workload in workloads(found):
            pod = workload["spec"]["template"]["spec"]
            self.assertNotIn("initContainers", pod)
            only = container(workload)
            self.assertNotIn("command", only)
            self.assertNotIn("lifecycle", only)
            self.assertFalse([p for p in only if p.endswith("Probe") and "httpGet" not in only[p]])
        self.assertFalse([o for o in found if "annotations" in o["metadata"] and
                          any(k.startswith("helm.sh/hook") for k in o["metadata"]["annotations"])])

    @whatever_the_values
    def test_pods_are_restricted(self, found):
        for workload in workloads(found):
            pod = workload["spec"]["template"]["spec"]
            self.assertIs(pod["automountServiceAccountToken"], False)
            secure = pod["securityContext"]
            self.assertIs(secure["runAsNonRoot"], True)
            self.assertEqual({secure[k] for k in ("runAsUser", "runAsGroup", "fsGroup")}, {65532})
            self.assertEqual(secure["seccompProfile"], {"type": "RuntimeDefault"})
            self.assertEqual(container(workload)["securityContext"], {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            })
            for volume in pod["volumes"]:
                self.assertEqual(volume["secret"]["defaultMode"], 0o440)
            for host in ("hostNetwork", "hostPID", "hostIPC"):
                self.assertNotIn(host, pod)
        self.assertIs(one(found, "ServiceAccount", "")["automountServiceAccountToken"], False)

    @whatever_the_values
    def test_kubernetes_puts_nothing_into_our_environment(self, found):
        """A service everwire-node would give EVERWIRE_NODE_PORT, an unknown key to the binary."""
        for workload in workloads(found):
            self.assertIs(workload["spec"]["template"]["spec"]["enableServiceLinks"], False)
            self.assertEqual([e["name"] for e in container(workload)["env"]], ["POD_NAME"])

    @whatever_the_values
    def test_graces_are_longer_than_drains(self, found):
        for workload in workloads(found):
            grace = workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
            self.assertEqual(grace, 120 if workload["kind"] == "StatefulSet" else 90)

    def test_nodes_are_spread(self):
        for name in VALUE_SETS:
            for workload in workloads(rendered(name)):
                pod, labels = workload["spec"]["template"]["spec"], workload["spec"]["selector"]
                hard = workload["kind"] == "StatefulSet" and name != "one host"
                rule = "required" if hard else "preferred"
                [term] = pod["affinity"]["podAntiAffinity"][f"{rule}DuringSchedulingIgnoredDuringExecution"]
                self.assertEqual(term.get("podAffinityTerm", term)["labelSelector"], labels)
                [zone] = pod["topologySpreadConstraints"]
                self.assertEqual(zone["labelSelector"], labels)

    @whatever_the_values
    def test_selectors_match_their_pods_and_nobody_else(self, found):
        pods = {w["metadata"]["name"]: w["spec"]["template"]["metadata"]["labels"] for w in workloads(found)}
        for workload in workloads(found):
            self.assertEqual(workload["spec"]["selector"], {"matchLabels": pods[workload["metadata"]["name"]]})
        for service in (o for o in found if o["kind"] == "Service"):
            selector, ports = service["spec"]["selector"], service["spec"]["ports"]
            [target] = [w for w in workloads(found) if pods[w["metadata"]["name"]] == selector]
            named = {port["name"] for port in container(target)["ports"]}
            self.assertLessEqual({port["targetPort"] for port in ports}, named)

    def test_what_is_not_allowed_is_denied(self):
        for name in VALUE_SETS:
            found = rendered(name)
            policies = {o["metadata"]["name"]: o["spec"] for o in found if o["kind"] == "NetworkPolicy"}
            if name == "no policies":
                self.assertEqual(policies, {})
                continue
            self.assertEqual(set(policies), {w["metadata"]["name"] for w in workloads(found)})
            for workload in workloads(found):
                policy = policies[workload["metadata"]["name"]]
                self.assertEqual(policy["policyTypes"], ["Ingress", "Egress"])
                self.assertEqual(policy["podSelector"], workload["spec"]["selector"])
            for rule in policies["rel-everwire-node"]["ingress"]:
                self.assertTrue(rule["from"], f"{name}: nodes answer anybody on {rule['ports']}")
            peer = [r for r in policies["rel-everwire-node"]["ingress"] if r["ports"] == [{"port": "peer"}]]
            nodes = one(found, "StatefulSet", "-node")["spec"]["selector"]
            self.assertEqual([r["from"] for r in peer], [[{"podSelector": nodes}]])

    @whatever_the_values
    def test_secrets_are_named_never_held(self, found):
        self.assertFalse([o for o in found if o["kind"] in ("Secret", "ConfigMap")])


class Formation(unittest.TestCase):
    def nodes(self, name):
        return one(rendered(name), "StatefulSet", "-node")

    def test_the_first_three_form_the_cluster(self):
        for name, expect in (("single", 1), ("least", 3), ("five nodes", 3)):
            flags = arguments(self.nodes(name))
            host = "rel-everwire-node-{}.rel-everwire-peers.prod.svc.cluster.local:7401"
            seeds = ",".join(host.format(ordinal) for ordinal in range(expect))
            self.assertEqual(flags["--seeds"], [seeds])
            self.assertEqual(flags["--bootstrap-expect"], [str(expect)])

    def test_the_first_node_is_its_own_first_seed(self):
        """Formation wants its own answer among those of the seeds."""
        for name in VALUE_SETS:
            flags = arguments(self.nodes(name))
            own = flags["--advertise-peer"][0].replace("$(POD_NAME)", "rel-everwire-node-0")
            self.assertEqual(own, flags["--seeds"][0].split(",")[0])
            host = flags["--advertise"][0].removesuffix(":7400")
            self.assertEqual(flags["--advertise-peer"][0], f"{host}:7401")

    def test_more_nodes_restart_nobody(self):
        same = {str(self.nodes(n)["spec"]["template"]) for n in ("least", "five nodes", "six nodes")}
        self.assertEqual(len(same), 1)

    def test_edges_know_the_nodes_by_name(self):
        for name in ("least", "five nodes"):
            edge = one(rendered(name), "Deployment", "-edge")
            seeds = arguments(self.nodes(name))["--seeds"][0]
            self.assertEqual(arguments(edge)["--nodes"], [seeds.replace(":7401", ":7400")])


class Binary(unittest.TestCase):
    """The flags in the pods are flags of the binary that was built with this chart."""

    def test_the_binary_takes_every_argument(self):
        for name in VALUE_SETS.keys() - {"more arguments"}:
            for workload in workloads(rendered(name)):
                words = [word.replace("$(POD_NAME)", "pod-0") for word in container(workload)["args"]]
                with self.subTest(name, command=words[0]):
                    done = subprocess.run(
                        [os.environ["EVERWIRE_BIN"], *words, "--print-config"],
                        env={}, capture_output=True, text=True, timeout=120,
                    )
                    self.assertEqual(done.returncode, 0, done.stderr)

    def test_the_binary_refuses_what_kubernetes_would_add(self):
        """Why service links are off: if this ever passes, they may come back."""
        done = subprocess.run(
            [os.environ["EVERWIRE_BIN"], "node", "--print-config"],
            env={"EVERWIRE_NODE_PORT": "tcp://10.0.0.1:7400"}, capture_output=True, text=True, timeout=120,
        )
        self.assertEqual(done.returncode, 2, done.stdout)
        self.assertIn("EVERWIRE_NODE_PORT", done.stderr)


class ForEver(unittest.TestCase):
    """OPS-4: an immutable field that moved is a helm upgrade that no operator can do."""

    def test_no_value_moves_an_immutable_field(self):
        first = fixed(rendered("least"))
        for name in VALUE_SETS:
            with self.subTest(name):
                this = fixed(rendered(name))
                if this["edges"] is None:
                    this["edges"] = first["edges"]
                    this["services"]["rel-everwire-edge"] = first["services"]["rel-everwire-edge"]
                if name in support.CHOOSE_STORAGE:
                    self.assertNotEqual(this, first)
                    this["nodes"]["volumeClaimTemplates"] = first["nodes"]["volumeClaimTemplates"]
                self.assertEqual(this, first)

    def test_no_release_of_the_chart_moves_one(self):
        """One golden file for each release of the chart that changed what is written there: never."""
        goldens = sorted(GOLDEN.glob("fixed-*.yaml"))
        self.assertTrue(goldens)
        for golden in goldens:
            self.assertEqual(fixed(rendered("least")), yaml.safe_load(golden.read_text()), golden.name)

    def test_no_version_reaches_a_selector_a_claim_or_a_pod(self):
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        marks = (f"everwire-{chart['version']}", "helm.sh/", "app.kubernetes.io/version")
        for workload in workloads(rendered("least")):
            spec = {k: v for k, v in workload["spec"].items()}
            for mark in marks:
                self.assertNotIn(mark, str(spec))

    def test_names_come_from_the_release_alone(self):
        found = support.objects(support.values("least"), release="everwire")
        self.assertEqual(one(found, "StatefulSet", "")["metadata"]["name"], "everwire-node")
        found = support.objects(support.values("least"), release="chat")
        self.assertEqual(one(found, "StatefulSet", "")["metadata"]["name"], "chat-everwire-node")

    def test_a_name_that_would_be_cut_is_refused(self):
        longest = "r" * 31
        nodes = one(support.objects(support.values("least"), longest), "StatefulSet", "-node")
        # Kubernetes labels pods with <name>-<hash of ten>; a label has 63 characters.
        self.assertLessEqual(len(nodes["metadata"]["name"]) + 11, 63)
        done = support.template(support.values("least"), longest + "r")
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("shorter release name", done.stderr)


if __name__ == "__main__":
    unittest.main()
