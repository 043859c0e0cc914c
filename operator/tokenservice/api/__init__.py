"""What users write: the four kinds of `taas.dev/v1alpha1`, as pydantic models.

The models are the single source. `schema` turns them into the CRDs under `crds/`, and a test fails when those are
stale. Nothing here reads a cluster, a file or a clock.
"""

GROUP = "taas.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
