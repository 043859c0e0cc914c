// The Prometheus operator's CRDs, which lie in its module; nothing is built.
module tokenservice.dev/e2e/tools/prometheus-operator

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
