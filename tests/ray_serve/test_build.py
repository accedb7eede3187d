"""What `serve run clipskip.serve.ray:build NAME=VALUE` makes of its arguments."""

import json
import os
import subprocess
import sys

import pytest

if "CLIPSKIP_TEST_RAY" not in os.environ:
    pytest.skip("`make test-ray` runs these: they install Ray", allow_module_level=True)

# In a process of its own: what Ray warns of when it is imported is no error of ours.
BUILD = """
import json, sys
from clipskip.errors import ClipskipError
from clipskip.serve.ray import build
for args in json.load(sys.stdin):
    try:
        print(json.dumps({"made": type(build(args)).__name__}))
    except ClipskipError as error:
        print(json.dumps({"message": error.message, "field": error.field, "hint": error.hint}))
"""


def built(*args):
    """For each what is made, or what is refused."""
    done = subprocess.run([sys.executable, "-c", BUILD], input=json.dumps(args), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_arguments_are_the_options_of_clipskip_serve_and_what_is_wrong_is_named(sample_store):
    store = {"store": str(sample_store)}
    port, unknown, number, none, flag, lists = built(
        {**store, "port": 7860},
        {**store, "max_quue": 5},
        {**store, "max_queue": 0},
        {},
        {**store, "log_prompts": True, "cors": ["https://a.example", "https://b.example"], "max-queue": 9},
        {"store": [str(sample_store)], "target": "onnxruntime-cuda"},
    )
    assert (port["field"], port["hint"]) == ("port", "http_options: {port: ...}")
    assert "--max-quue" in unknown["message"]
    assert "--max-queue" in unknown["hint"]
    assert number["field"] == "max_queue"
    assert "STORE" in none["message"]
    assert flag["made"] == lists["made"] == "Application"
