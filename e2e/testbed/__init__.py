"""A real Kubernetes control plane on this machine, with simulated accelerator nodes and a real Prometheus.

Everything that decides is the real thing (API server, scheduler, controllers, admission, garbage collection); what is
simulated is what a laptop lacks: the kubelets (KWOK, driven by `stages.yaml`) and the node autoscaler (`nodes.py`).
"""
