"""Real engines in real pods: vLLM on two nodes with kubelets of their own, on one machine, without a container engine.

control plane, Prometheus, load        on the host
      │ bridge 10.90.0.1
   real-1, real-2                      containerd, kubelet, kube-proxy in namespaces of their own
      └─ pods                          the operator from its image, vLLM from its own
"""
