"""What an HPA asks and what it is told; the API server between them is asked in `python -m e2e.demo.hpa`."""

from __future__ import annotations

import pytest

from e2e.testbed.external_metrics import Source, answer

SOURCE = Source("http://127.0.0.1:9090", {"engine_requests": "vllm:num_requests_running|vllm:num_requests_waiting"})
SERIES = '__name__=~"vllm:num_requests_running|vllm:num_requests_waiting",namespace="team"'


@pytest.mark.parametrize(
    ("selector", "labels"),
    {
        "none": ("", SERIES),
        "one": ("model_name=chat", f'{SERIES},model_name="chat"'),
        "two": ("model_name=chat,pod=a", f'{SERIES},model_name="chat",pod="a"'),
    }.values(),
)
def test_a_selector_goes_into_the_query(selector: str, labels: str) -> None:
    assert SOURCE.query("engine_requests", "team", selector) == f"sum({{{labels}}})"


@pytest.mark.parametrize("selector", ["model_name", "model_name!=chat"])
def test_a_selector_of_another_kind_is_refused(selector: str) -> None:
    with pytest.raises(ValueError, match="only key=value"):
        SOURCE.query("engine_requests", "team", selector)


def test_there_are_no_other_metrics() -> None:
    with pytest.raises(KeyError):
        SOURCE.query("something", "team", "")


def test_a_sum_is_told_in_thousandths() -> None:
    told = answer("engine_requests", [{"metric": {}, "value": [1700000000.25, "12.5"]}])
    assert told["apiVersion"] == "external.metrics.k8s.io/v1beta1"
    assert told["items"] == [
        {
            "metricName": "engine_requests",
            "metricLabels": {},
            "timestamp": "2023-11-14T22:13:20Z",
            "value": "12500m",
        }
    ]


def test_nothing_measured_is_no_value_and_not_zero() -> None:
    assert answer("engine_requests", [])["items"] == []
