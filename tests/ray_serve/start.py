"""What `serve run CONFIG` does, with room for two replicas on any machine, no dashboard, and in a given folder."""

import sys

import ray
from ray.serve.scripts import cli

config, folder = sys.argv[1:]
ray.init(
    address="local",
    num_cpus=4,
    include_dashboard=False,
    object_store_memory=256 << 20,
    namespace="serve",
    _temp_dir=folder,
)
cli(["run", config])
