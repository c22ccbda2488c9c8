"""The chart's values: each is documented, a misspelt one is refused, what is missing is named."""

import copy
import json
import unittest
from concurrent.futures import ThreadPoolExecutor

import yaml

import support
from support import CHART, LEAST, merged

TEXT = (CHART / "values.yaml").read_text()
DEFAULTS = yaml.safe_load(TEXT)
SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def resolved(schema):
    for part in schema.get("allOf", []):
        schema = schema | SCHEMA["definitions"][part["$ref"].rsplit("/", 1)[1]]
    return schema


def paths(schema=SCHEMA, at=()):
    """Every key that the schema knows, as a path."""
    for key, inner in resolved(schema).get("properties", {}).items():
        yield (*at, key), resolved(inner)
        yield from paths(inner, (*at, key))


def reached(tree, path):
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True


def misspelt(path):
    """The least values, plus the value at the path under a name that is off by one letter."""
    wrong = f"{path[-1]}x"
    tree = wrong_at = {}
    for key in path[:-1]:
        wrong_at = wrong_at.setdefault(key, {})
    inner = DEFAULTS
    for key in path:
        inner = inner.get(key, {})
    wrong_at[wrong] = copy.deepcopy(inner)
    return merged(LEAST, tree)


def documented():
    """Keys of values.yaml by path, with whether a comment stands above."""
    above, stack, found = False, [], {}
    for line in TEXT.splitlines():
        word = line.strip()
        if word.startswith("#"):
            above = True
            continue
        if not word or word.startswith("- "):
            above = False
            continue
        depth = (len(line) - len(word)) // 2
        stack = [*stack[:depth], word.split(":")[0]]
        found[tuple(stack)] = above
        above = False
    return found


class Values(unittest.TestCase):
    def test_the_schema_and_the_defaults_know_the_same_keys(self):
        known = {path for path, _ in paths()} - {("global",)}
        for path in known:
            self.assertTrue(reached(DEFAULTS, path), f"{path} has no default")
        for path in documented():
            inner = [p for p in known if p == path[: len(p)]]
            self.assertTrue(inner, f"{path} is not in the schema")

    def test_every_value_is_documented_twice(self):
        comments = documented()
        for path, schema in paths():
            self.assertTrue(schema.get("description"), f"{path} has no description")
            leaf = "properties" not in schema or path[-1] == "resources"
            if leaf and path != ("global",) and "resources" not in path[:-1]:
                self.assertTrue(comments[path], f"{path} has no comment in values.yaml")

    def test_no_object_takes_what_it_does_not_know(self):
        for path, schema in paths():
            if "properties" in schema:
                self.assertIs(schema["additionalProperties"], False, path)

    def test_a_misspelt_key_is_refused_by_helm(self):
        every = [path for path, _ in paths()]
        self.assertGreater(len(every), 50)

        def refused(path):
            done = support.template(misspelt(path))
            return done.returncode != 0 and f"{path[-1]}x" in done.stderr

        with ThreadPoolExecutor(2) as pool:
            for path, outcome in zip(every, pool.map(refused, every)):
                self.assertTrue(outcome, f"{path} misspelt went through")

    def test_nonsense_is_refused(self):
        nonsense = [
            {"node": {"replicas": 0}},
            {"node": {"replicas": 2}},
            {"node": {"replicas": "3"}},
            {"node": {"hostSpread": "none"}},
            {"node": {"storage": {"size": "20 GB"}}},
            {"node": {"extraArgs": ["rm -rf"]}},
            {"node": {"service": {"type": "ExternalName"}}},
            {"edge": {"replicas": 0}},
            {"edge": {"origins": ["*"]}},
            {"edge": {"origins": ["https://a.example/path"]}},
            {"edge": {"service": {"port": 70000}}},
            {"image": {"digest": "latest"}},
            {"image": {"pullPolicy": "Sometimes"}},
            {"listen": "127.0.0.1"},
            {"auth": {"secretName": "Not A Name"}},
            {"auth": {"key": "../../etc/passwd"}},
            {"networkPolicy": {"grpcFrom": [{}]}},
        ]
        for tree in nonsense:
            done = support.template(merged(LEAST, tree))
            self.assertNotEqual(done.returncode, 0, tree)

    def test_what_is_missing_is_named(self):
        tls = {"insecure": False, "tls": {"secretName": "t"}}
        missing = [
            ({"auth": {"secretName": ""}}, "auth.secretName"),
            ({"edge": {"token": {"secretName": ""}}}, "edge.token.secretName"),
            ({"edge": {"insecure": False}}, "edge.tls.secretName"),
            ({"node": {"insecure": False}}, "node.tls.secretName"),
            ({"node": tls}, "node.peerTls.secretName"),
            ({"node": {"tls": {"secretName": "t"}}}, "edge.nodeCa.secretName"),
            ({"edge": {"nodeCa": {"secretName": "t"}}}, "node.tls"),
        ]
        for tree, named in missing:
            done = support.template(merged(LEAST, tree))
            self.assertNotEqual(done.returncode, 0, tree)
            self.assertIn(named, done.stderr)

    def test_the_defaults_alone_are_refused_and_say_why(self):
        done = support.template({})
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("auth.secretName", done.stderr)

    def test_it_can_be_part_of_another_chart(self):
        support.objects(merged(LEAST, {"global": {"anything": 1}}))


if __name__ == "__main__":
    unittest.main()
