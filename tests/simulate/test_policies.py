"""Each peer decides what its description says: cases worked out by hand."""

from __future__ import annotations

from math import inf

import pytest

from tests.simulate.views import GONE, LENGTHS, TARGETS, ask, make_variant, make_view, metrics
from tokenservice.core.capacity import Workload, capacity
from tokenservice.core.step import StepModel
from tokenservice.simulate.policies import aibrix, chiron, dynamo, kubeai, llmd, sageserve, thresholds, tokenscale, wva
from tokenservice.simulate.policies.base import batch_at_capacity, kv_at_capacity
from tokenservice.simulate.policies.hpa import DEFAULT_BEHAVIOUR, Behaviour
from tokenservice.simulate.policies.knative import Kpa, knative
from tokenservice.simulate.policy import EngineView


def engine(running: float = 0.0, waiting: float = 0.0, kv_usage: float = 0.0) -> EngineView:
    return EngineView(running=running, waiting=waiting, kv_usage=kv_usage)


# --- KEDA and HPA on thresholds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("running", "waiting", "ready", "wanted"),
    [
        pytest.param(90.0, 0.0, 4, 6, id="90 running over 16"),
        pytest.param(64.0, 7.0, 4, 7, id="7 in the engines' queues over 1"),
        pytest.param(0.0, 0.0, 0, 6, id="6 that the router holds for want of a replica are a queue"),
        pytest.param(66.0, 0.0, 4, 4, id="66 over 4 x 16 is within the tolerance, whatever the mean of the window"),
    ],
)
def test_keda_takes_the_worse_of_queue_and_running(running: float, waiting: float, ready: int, wanted: int) -> None:
    held = 6.0 if ready == 0 else running + 20
    seen = make_view(4, ready=ready, metrics=metrics(running=running, waiting=waiting), concurrency=held)
    assert ask(thresholds.keda_queue(thresholds.Queue()), 0.0, seen) == wanted


def test_keda_tuned_by_a_load_test_keeps_a_share_of_the_batch() -> None:
    batch = batch_at_capacity(make_view())
    policy = thresholds.keda_queue(thresholds.Queue(running_share=0.5))
    assert ask(policy, 0.0, make_view(1, metrics=metrics(running=1.9 * batch), concurrency=1.9 * batch)) == 2
    policy = thresholds.keda_queue(thresholds.Queue(running_share=0.5, behaviour=Behaviour()))
    assert ask(policy, 0.0, make_view(1, metrics=metrics(running=1.9 * batch), concurrency=1.9 * batch)) == 4


def test_a_load_test_is_made_once_with_the_usual_requests() -> None:
    usual = capacity(make_variant(), LENGTHS, TARGETS).batch
    assert batch_at_capacity(make_view(workload=Workload(50_000.0, 1.0))) == usual
    assert kv_at_capacity(make_view()) == pytest.approx(usual * 1050 / 400_000)


def test_the_queue_alone_does_not_see_a_full_batch() -> None:
    policy = thresholds.keda_queue(thresholds.Queue(queue=5, running=None, behaviour=DEFAULT_BEHAVIOUR))
    assert ask(policy, 0.0, make_view(1, metrics=metrics(running=256), concurrency=256.0)) == 1
    assert ask(policy, 15.0, make_view(1, metrics=metrics(running=256, waiting=14), concurrency=270.0)) == 3


def test_the_duty_cycle_is_a_mean_over_pods() -> None:
    policy = thresholds.hpa_duty_cycle(thresholds.DutyCycle())
    assert ask(policy, 0.0, make_view(4, duty_cycle=0.96)) == 5
    assert ask(policy, 15.0, make_view(4, duty_cycle=GONE)) == 4


# --- Knative -------------------------------------------------------------------------------------------------------


def test_knative_keeps_70_percent_of_the_concurrency_per_replica() -> None:
    assert ask(knative(Kpa(concurrency=10)), 0.0, make_view(6, concurrency=70.0)) == 10
    assert ask(knative(Kpa()), 0.0, make_view(2, concurrency=200.0)) == 3


def test_knative_averages_a_minute_and_at_most_halves() -> None:
    policy = knative(Kpa(concurrency=10))
    for now in range(0, 60, 2):
        assert ask(policy, float(now), make_view(10, concurrency=70.0)) == 10
    assert ask(policy, 60.0, make_view(10, concurrency=7.0)) == 10  # (29 x 70 + 7) / 30 = 67.9, over 7 is 9.7
    for now in range(62, 120, 2):
        ask(policy, float(now), make_view(10, concurrency=7.0))
    assert ask(policy, 120.0, make_view(10, concurrency=7.0)) == 5


def test_knative_begins_in_panic_and_keeps_what_it_finds_for_its_stable_window() -> None:
    policy = knative(Kpa(concurrency=10))
    assert {ask(policy, float(now), make_view(10, concurrency=7.0)) for now in range(2, 64, 2)} == {10}
    assert ask(policy, 64.0, make_view(10, concurrency=7.0)) == 5
    assert ask(knative(Kpa(concurrency=10)), 2.0, make_view(1, concurrency=7.0)) == 1


def test_knative_delays_what_takes_away() -> None:
    policy = knative(Kpa(concurrency=10, stable_window=2, scale_down_delay=300))
    ask(policy, 0.0, make_view(1, concurrency=70.0))
    counts = {now: ask(policy, float(now), make_view(10, concurrency=7.0)) for now in range(2, 310, 2)}
    assert (counts[300], counts[302]) == (10, 5)  # the panic of the start ends after its window, at 4


def test_knative_panics_at_twice_the_ready_replicas_and_never_shrinks_in_panic() -> None:
    policy = knative(Kpa(concurrency=10))
    assert ask(policy, 0.0, make_view(1, concurrency=7.0)) == 1
    assert ask(policy, 2.0, make_view(1, concurrency=70.0)) == 6  # (7 + 70) / 2 = 38.5, over 7 is 5.5
    assert ask(policy, 4.0, make_view(6, ready=1, concurrency=70.0)) == 7  # (7 + 70 + 70) / 3 = 49
    assert ask(policy, 6.0, make_view(7, ready=1, concurrency=70.0)) == 10  # the 7 left the panic window
    counts = {now: ask(policy, float(now), make_view(10, concurrency=7.0)) for now in range(8, 70, 2)}
    assert {count for now, count in counts.items() if now <= 66} == {10}  # last over the threshold at 6
    assert counts[68] == 5


# --- KubeAI --------------------------------------------------------------------------------------------------------


def test_kubeai_goes_up_at_once_and_down_once_three_lower_answers_have_passed() -> None:
    policy = kubeai.kubeai(kubeai.KubeAI(window=10))
    assert ask(policy, 0.0, make_view(1, concurrency=250.0)) == 3
    assert [ask(policy, now, make_view(3, concurrency=50.0)) for now in (10.0, 20.0, 30.0, 40.0)] == [3, 3, 3, 1]


def test_kubeai_looks_at_ten_minutes() -> None:
    policy = kubeai.kubeai(kubeai.KubeAI())
    for step in range(59):
        ask(policy, step * 10.0, make_view(1, concurrency=0.0))
    assert ask(policy, 590.0, make_view(1, concurrency=6060.0)) == 2  # 6060 / 60 = 101


# --- llm-d ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("level", "replicas", "ready", "wanted"),
    [
        pytest.param(0.60, 8, 8, 9, id="8 x (0.6 / 0.55 - 1) = 0.7"),
        pytest.param(1.10, 3, 3, 6, id="twice the level, twice the count"),
        pytest.param(0.60, 8, 4, 8, id="half of them still start: no less than there is"),
        pytest.param(2.00, 8, 4, 15, id="8 x (2 x 0.5 / 0.55 - 1) = 6.5"),
        pytest.param(0.50, 8, 8, 8, id="within the band"),
        pytest.param(0.30, 8, 8, 6, id="8 x (1 - 0.3 / 0.4) = 2"),
        pytest.param(0.00, 8, 8, 0, id="no signal, no replica but the fewest allowed"),
    ],
)
def test_slo_aware_count(level: float, replicas: int, ready: int, wanted: int) -> None:
    assert llmd.desired(level, replicas, ready, llmd.SloAware()) == wanted


def test_slo_aware_signal_is_the_worse_percentile_over_its_target() -> None:
    ttft = ((1.0, 5.0), (2.0, 9.0), (inf, 10.0))  # P90 is 2 s, and 2 s is the target
    tpot = ((0.025, 9.0), (inf, 10.0))  # P90 is 25 ms of 50
    assert llmd.signal([metrics(ttft_buckets=ttft, tpot_buckets=tpot)], TARGETS, 0.9) == 1.0
    assert llmd.signal([metrics(tpot_buckets=tpot)], TARGETS, 0.9) == 0.5
    assert llmd.signal([metrics(ttft_buckets=((10.0, 1.0), (inf, 1.0)))], TARGETS, 0.9) == 2.0
    assert llmd.signal([metrics()], TARGETS, 0.9) == 0.0


def test_slo_aware_smooths_45_seconds_and_waits_30_to_go_up() -> None:
    policy = llmd.slo_aware(llmd.SloAware())
    slow = metrics(ttft_buckets=((1.0, 0.0), (2.2, 10.0), (inf, 10.0)))  # P90 2.08 s of 2: signal 1.04
    counts = [ask(policy, now, make_view(4, metrics=slow)) for now in (0.0, 15.0, 30.0)]
    assert counts == [4, 4, 8]  # 4 x 1.04 / 0.55 = 7.6, once the count that was found is 30 s old
    policy = llmd.slo_aware(llmd.SloAware())
    calm = metrics(ttft_buckets=((1.0, 10.0), (2.2, 10.0), (inf, 10.0)))  # 0.45, within the band
    ask(policy, 0.0, make_view(4, metrics=calm))
    assert ask(policy, 15.0, make_view(4, metrics=slow)) == 4  # 0.45 and 0.98 want 6, the lowest wish of 30 s is 4
    assert ask(policy, 30.0, make_view(4, metrics=slow)) == 6  # 0.45, 0.98 and 1.01 want 6, as 15 s ago


def test_slo_aware_looks_at_a_minute() -> None:
    policy = llmd.slo_aware(llmd.SloAware())
    slow = metrics(ttft_buckets=((1.0, 0.0), (4.0, 1.0), (inf, 1.0)))  # one slow request in 15 s
    calm = metrics(ttft_buckets=((1.0, 10.0), (4.0, 10.0), (inf, 10.0)))  # P90 0.9 s of 2: within the band
    readings = [calm] * 3 + [slow] + [calm] * 4
    counts = [ask(policy, 15.0 * at, make_view(4, metrics=it)) for at, it in enumerate(readings)]
    assert counts == [4] * 8  # of 31 requests in a minute the one is no tenth, though of a scrape it is all


def test_slo_aware_goes_down_one_in_two_minutes_after_three() -> None:
    policy, count, counts = llmd.slo_aware(llmd.SloAware()), 8, {}
    busy, idle = metrics(ttft_buckets=((1.0, 10.0), (inf, 10.0))), metrics()
    for now in range(0, 481, 15):
        count = counts[now] = ask(policy, float(now), make_view(count, metrics=busy if now == 0 else idle))
    # The one busy look is in the minute until 45, so the last wish for 8 leaves the window at 225.
    assert (counts[210], counts[225], counts[330], counts[345], counts[450], counts[465]) == (8, 7, 7, 6, 6, 5)


# --- WVA -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("demand", "ready", "pending", "wanted"),
    [
        pytest.param(85.0, 3, 1, 1, id="100 needed, 80 there and coming"),
        pytest.param(85.0, 3, 2, 0, id="100 needed, 100 coming"),
        pytest.param(34.0, 3, 0, 0, id="between the shares"),
        pytest.param(14.0, 3, 0, -2, id="20 kept free of 60"),
    ],
)
def test_wva_budget(demand: float, ready: int, pending: int, wanted: int) -> None:
    assert wva.change(demand, 20.0, ready, pending, wva.TokenBudget()) == wanted


def test_wva_takes_an_unseen_engine_at_its_arguments() -> None:
    assert wva.from_arguments(make_variant(), LENGTHS) == 256 * 1050
    assert wva.from_arguments(make_variant(max_num_batched_tokens=1100), LENGTHS) == pytest.approx(100 * 1050)


def test_wva_scales_on_tokens_held_and_queued() -> None:
    # A replica is worth min(0.8 x 400k, 256 x 1050 = 268.8k). 2 x 0.55 x 400k = 440k over 0.85 is 517.6k of 537.6k.
    policy = wva.wva(wva.TokenBudget(up_window=0, down_window=0))
    fits = make_view(2, engines=(engine(200, kv_usage=0.55),) * 2, concurrency=400.0)
    assert ask(policy, 0.0, fits) == 2
    # 20 prompts wait, 20,000 tokens: 460k over 0.85 is 541.2k.
    queued = make_view(2, engines=(engine(200, 4, 0.55), engine(200, 16, 0.55)), concurrency=420.0)
    assert ask(wva.wva(wva.TokenBudget(up_window=0, down_window=0)), 0.0, queued) == 3


def test_wva_learns_what_a_saturated_engine_holds() -> None:
    policy = wva.wva(wva.TokenBudget(up_window=0, down_window=0))
    saturated = make_view(1, engines=(engine(100, 5, 0.25),), concurrency=105.0)
    # It is worth the 100k it was seen with: 105k over 0.85 is 123.5k, so one more.
    assert ask(policy, 0.0, saturated) == 2


# --- AIBrix --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ratio", "replicas", "wanted"),
    [(1.5, 4, 6), (3.0, 4, 8), (1.05, 4, 4), (0.95, 4, 4), (0.6, 4, 3), (0.1, 4, 2), (0.1, 1, 1)],
)
def test_apa_follows_in_proportion_and_at_most_doubles_or_halves(ratio: float, replicas: int, wanted: int) -> None:
    assert aibrix.proportional(ratio, replicas, aibrix.Apa()) == wanted


def test_apa_smooths_three_minutes_and_cools_down_for_five() -> None:
    policy = aibrix.apa(aibrix.Apa())
    for now in range(0, 180, 10):
        assert ask(policy, float(now), make_view(4, engines=(engine(kv_usage=0.5),) * 4)) == 4
    # 18 samples: seventeen of 0.5 and one of 0.95 are 0.525; with nine of each 0.725, over 0.5 is 1.45.
    assert ask(policy, 180.0, make_view(4, engines=(engine(kv_usage=0.95),) * 4)) == 4
    for now in range(190, 260, 10):
        ask(policy, float(now), make_view(4, engines=(engine(kv_usage=0.95),) * 4))
    assert ask(policy, 260.0, make_view(4, engines=(engine(kv_usage=0.95),) * 4)) == 6
    counts = {now: ask(policy, float(now), make_view(6, metrics=metrics())) for now in range(270, 700, 10)}
    assert counts[550] == 6
    assert counts[690] < 6


FULLEST = make_view(4, metrics=metrics(kv_usage=0.9), engines=(engine(kv_usage=0.9), *(engine(kv_usage=0.3),) * 3))


def test_the_kv_cache_is_looked_at_as_a_mean_over_engines_not_at_the_fullest() -> None:
    assert ask(aibrix.apa(aibrix.Apa()), 0.0, FULLEST) == 4  # 0.45 over 0.5
    assert ask(sageserve.sageserve(sageserve.LongTerm()), 0.0, FULLEST, rising) == 4  # more are due above 0.5


def test_apa_tuned_measures_against_a_load_test() -> None:
    use = kv_at_capacity(make_view())
    policy = aibrix.apa(aibrix.Apa(share=0.5))
    assert ask(policy, 0.0, make_view(4, engines=(engine(kv_usage=0.75 * use),) * 4)) == 6


# --- Dynamo --------------------------------------------------------------------------------------------------------


def test_dynamo_takes_an_engine_for_its_largest_batch_within_the_target() -> None:
    # An iteration takes 10 + 0.2 B ms: 50 ms at 200 sequences, which give 200 / (100 x 50 ms) = 40 requests/s;
    # a prompt takes 10 + 10 ms, which allows 50.
    assert dynamo.requests_per_second(make_variant(), LENGTHS, TARGETS) == pytest.approx(40.0)
    # At 30 ms 100 sequences: 33.3.
    assert dynamo.requests_per_second(make_variant(), LENGTHS, TARGETS, 0.6) == pytest.approx(100 / 3)
    assert dynamo.requests_per_second(make_variant(StepModel(60, 0.1, 0, 0.01)), LENGTHS, TARGETS) == 0.0
    assert dynamo.requests_per_second(make_variant(StepModel(10, 0.0, 0, 2.1)), LENGTHS, TARGETS) == 0.0


def test_dynamo_provides_for_the_next_interval_eight_at_a_time() -> None:
    policy = dynamo.dynamo(dynamo.Sla())
    assert policy.period_seconds == 180
    assert ask(policy, 0.0, make_view(1), lambda start, end: 100.0) == 3
    assert ask(policy, 180.0, make_view(3), lambda start, end: 1000.0) == 11
    assert (
        ask(dynamo.dynamo(dynamo.Sla(perfect=False)), 0.0, make_view(1, metrics=metrics(requests_per_second=100))) == 3
    )


@pytest.mark.parametrize(
    ("engines", "ready", "wanted"),
    [
        pytest.param((engine(300), engine(300)), 2, 1, id="70 ms an iteration on both"),
        pytest.param((engine(300), engine(150)), 2, 0, id="one is well"),
        pytest.param((engine(10, 100), engine(10, 100)), 2, 1, id="100 prompts of 20 ms wait on both"),
        pytest.param((engine(10), engine(10)), 2, -1, id="one could take both"),
        pytest.param((engine(90), engine(90)), 2, 0, id="one would take 46 ms, more than 80 % of 50"),
        pytest.param((engine(10, kv_usage=0.6), engine(10, kv_usage=0.6)), 2, 0, id="the KV cache would not fit"),
        pytest.param((engine(300),), 1, 0, id="the other one still starts"),
    ],
)
def test_dynamo_corrects_by_load(engines: tuple[EngineView, ...], ready: int, wanted: int) -> None:
    assert dynamo.correction(make_view(2, ready=ready, engines=engines), margin=1.0) == wanted


def test_dynamo_never_corrects_below_what_the_forecast_needs() -> None:
    policy = dynamo.dynamo(dynamo.Sla(load_loop=True))
    assert policy.period_seconds == 5
    idle = make_view(4, engines=(engine(),) * 4)
    assert ask(policy, 0.0, idle, lambda start, end: 100.0) == 3
    assert ask(policy, 5.0, make_view(3, engines=(engine(),) * 3), lambda start, end: 100.0) == 3


# --- SageServe -----------------------------------------------------------------------------------------------------


def rising(start: float, end: float) -> float:
    """95 requests/s within the first hour's last minutes, 20 otherwise."""
    return 95.0 if 3000 <= start < 3600 else 20.0


def test_sageserve_approaches_its_hourly_target_as_utilization_asks() -> None:
    policy = sageserve.sageserve(sageserve.LongTerm())  # 95 over 10 is 10
    assert ask(policy, 0.0, make_view(8, engines=(engine(kv_usage=0.4),) * 8), rising) == 8
    assert ask(policy, 10.0, make_view(8, engines=(engine(kv_usage=0.6),) * 8), rising) == 9
    assert ask(policy, 60.0, make_view(9, engines=(engine(kv_usage=0.6),) * 9), rising) == 9
    assert ask(policy, 75.0, make_view(9, engines=(engine(kv_usage=0.6),) * 9), rising) == 10
    assert ask(policy, 150.0, make_view(10, engines=(engine(kv_usage=0.9),) * 10), rising) == 10
    assert ask(policy, 3600.0, make_view(10, engines=(engine(kv_usage=0.2),) * 10), rising) == 9  # 20 over 10 is 2


def test_sageserve_goes_beyond_its_target_when_five_times_as_much_arrives() -> None:
    policy = sageserve.sageserve(sageserve.LongTerm())
    ask(policy, 0.0, make_view(10, metrics=metrics()), rising)
    assert ask(policy, 10.0, make_view(10, metrics=metrics(requests_per_second=99)), rising) == 10
    assert ask(policy, 20.0, make_view(10, metrics=metrics(requests_per_second=101)), rising) == 11


def test_sageserve_immediate_goes_to_the_target_at_once() -> None:
    policy = sageserve.sageserve(sageserve.LongTerm(grow=-1, shrink=inf, pause=0))
    assert ask(policy, 0.0, make_view(3, metrics=metrics()), rising) == 10


# --- Chiron --------------------------------------------------------------------------------------------------------


def test_chiron_keeps_the_share_of_busy_instances() -> None:
    batch = batch_at_capacity(make_view())
    policy = chiron.chiron(chiron.Backpressure())
    assert ask(policy, 0.0, make_view(2, concurrency=4.5 * batch)) == 9  # 5 busy over 0.6 is 8.3
    assert ask(policy, 10.0, make_view(9, concurrency=0.5 * batch)) == 8  # one at a time


# --- TokenScale ----------------------------------------------------------------------------------------------------


def test_velocities_are_tokens_of_full_iterations() -> None:
    assert tokenscale.prefill_velocity(make_variant()) == pytest.approx(8192 / 0.09192)
    # 50 ms leave 40 over 0.1: 400 sequences, but 256 slots: 35.6 ms for 256 x 1100 / 100 tokens released.
    assert tokenscale.decode_velocity(make_variant(), LENGTHS, TARGETS) == pytest.approx(2816 / 0.0356)
    assert tokenscale.decode_velocity(make_variant(StepModel(60, 0.1, 0, 0)), LENGTHS, TARGETS) == 0.0


def test_tokenscale_adds_prefill_decode_and_a_convertible() -> None:
    seen = make_view(1, metrics=metrics(requests_per_second=50))
    # 50,000 over 89,121 and 55,000 over 79,101: 0.56 + 0.70 = 1.26.
    assert ask(tokenscale.tokenscale(tokenscale.Velocity()), 0.0, seen) == 3
    assert ask(tokenscale.tokenscale(tokenscale.Velocity(convertible=0)), 0.0, seen) == 2
    policy = tokenscale.tokenscale(tokenscale.Velocity())
    ask(policy, 0.0, seen)
    assert ask(policy, 55.0, make_view(3, metrics=metrics())) == 3
    assert ask(policy, 60.0, make_view(3, metrics=metrics())) == 1


def test_token_aware_counts_seconds_of_queued_prefill() -> None:
    # 400 prompts of 1,000 tokens over 89,121 tokens/s are 4.49 s: three replicas' worth, one pod at a time.
    seen = make_view(1, metrics=metrics(waiting=400), concurrency=400.0)
    assert ask(tokenscale.token_aware(tokenscale.TokenAware()), 0.0, seen) == 2
    assert ask(tokenscale.token_aware(tokenscale.TokenAware(behaviour=Behaviour())), 0.0, seen) == 3
