"""A Ray cluster: `python tests/ray_hosts.py HOSTS` prints its address; each line on stdin kills a host.

In a process of its own: Ray forks when it starts hosts, which processes with JAX should not.
"""

import sys

from ray.cluster_utils import Cluster


def main():
    # The head has no room for workers, so that the driver's connection survives whatever happens to hosts.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    hosts = [cluster.add_node(num_cpus=2) for _ in range(int(sys.argv[1]))]
    cluster.wait_for_nodes()
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(hosts.pop(), allow_graceful=False)
        print("killed", flush=True)
    cluster.shutdown()


if __name__ == "__main__":
    main()
