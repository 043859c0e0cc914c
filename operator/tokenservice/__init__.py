"""A Kubernetes operator that serves language models as a contract."""
