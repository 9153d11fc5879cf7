"""What the advice says, by figures made by hand."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from clipmlu.clock import Stage
from clipmlu.measure.speed.advice import Estimate, PipelineFigures, advise, known_estimates
from clipmlu.measure.speed.limit import PipelineSetup, find_limit

CARD = PipelineSetup(workers=4, devices=1, cores=4, threads=0, shares_cores=False)
CPU = PipelineSetup(workers=2, devices=1, cores=2, threads=2, shares_cores=True)
SLOW_HOST: dict[Stage, float] = {"read": 0.001, "decode": 0.006, "preprocess": 0.003, "compute": 0.0005}
"""10 ms of a core to prepare an image, for a card that takes 2,000 images a second."""
ON_CPU: dict[Stage, float] = {"decode": 0.004, "preprocess": 0.004, "compute": 0.016}
"""8 ms of one core and 16 ms of two: two cores do 50 images a second."""


def _advice(costs: dict[Stage, float], setup: PipelineSetup, measured: float, **more: Any) -> list[str]:
    """Return the sentences for a pipeline; four physical cores unless said otherwise."""
    given = {"batch_size": 32, "cpus": 4, "physical_cores": 4, **more}
    limit = find_limit(costs, setup, measured=measured)
    return list(advise(PipelineFigures(costs=costs, setup=setup, limit=limit, **given)))


def test_waiting_card_is_told_with_the_cores_that_would_keep_it_busy() -> None:
    assert _advice(SLOW_HOST, CARD, measured=400.0) == [
        "The device waits 80% of the time: it could take 2000 images/s and gets 400.",
        "To keep the device busy, 20 cores would have to prepare images; there are 4.",
    ]


def test_several_cards_wait_together() -> None:
    assert _advice(SLOW_HOST, replace(CARD, devices=2), measured=400.0) == [
        "The 2 devices wait 90% of the time: they could take 4000 images/s and get 400.",
        "To keep the devices busy, 40 cores would have to prepare images; there are 4.",
    ]


@pytest.mark.parametrize(
    ("cores", "added"),
    [
        (8, "Add workers: --workers 8 instead of 4 would prepare 800 instead of 400 images/s."),
        (64, "Add workers: --workers 20 instead of 4 would prepare 2000 instead of 400 images/s."),
    ],
)
def test_idle_cores_get_workers_until_the_card_is_busy(cores: int, added: str) -> None:
    sentences = _advice(SLOW_HOST, replace(CARD, cores=cores), measured=400.0, cpus=cores, physical_cores=cores)
    assert added in sentences
    assert any("20 cores would have to" in each for each in sentences) is (cores < 20)


def test_busy_card_needs_nothing() -> None:
    fast: dict[Stage, float] = {"decode": 0.001, "compute": 0.002}
    assert _advice(fast, CARD, measured=490.0) == []


def test_more_workers_than_cores_are_told_to_be_of_no_use() -> None:
    sentences = _advice(SLOW_HOST, replace(CARD, workers=16), measured=400.0)
    assert "16 workers share 4 cores and are no faster than 4: use --workers 4." in sentences
    quota = _advice(SLOW_HOST, replace(CARD, workers=2, cores=1.5), measured=150.0)
    assert not any("no faster" in each for each in quota), "the default: a worker for each started core"


def test_options_measured_in_this_run_are_told_by_what_they_allow() -> None:
    host_options = {
        "--fast-preprocess": {"read": 0.001, "decode": 0.001, "preprocess": 0.002},
        "--useless": {"read": 0.001, "decode": 0.006, "preprocess": 0.0029},
    }
    sentences = _advice(SLOW_HOST, CARD, measured=400.0, host_options=host_options)
    assert (
        "--fast-preprocess would prepare an image in 4.00 instead of 10.00 ms of a core (measured here), which allows 1000 "
        "instead of 400 images/s."
    ) in sentences
    assert not any("--useless" in each for each in sentences), "1 % more is within the noise"


def test_estimates_are_marked_as_such_and_computed_from_the_shared_cores() -> None:
    estimates = (Estimate("install it", "decode", 0.5), Estimate("8 bits", "compute", 0.5))
    # 8 + 32 ms of a core: decoding in 2 ms saves 2 of 40 ms, computing in 8 ms on two cores 16 of 40.
    assert _advice(ON_CPU, CPU, measured=50.0, estimates=estimates) == [
        "install it: decoding takes about 50% of the time then (an estimate), which would allow 52.6 instead of 50.0 images/s.",
        "8 bits: computing takes about 50% of the time then (an estimate), which would allow 83.3 instead of 50.0 images/s.",
    ]


def test_change_of_a_part_that_is_not_the_limit_is_not_advised() -> None:
    slow_card: dict[Stage, float] = {"decode": 0.004, "compute": 0.02}
    estimates = (Estimate("install it", "decode", 0.5),)
    options = {"--fast-preprocess": {"decode": 0.001}}
    assert _advice(slow_card, CARD, measured=50.0, estimates=estimates, host_options=options) == []


NOTHING = {"slow_jpegs": False, "no_kernel": "", "quantised": True, "on_cpu": True, "vnni": True}


@pytest.mark.parametrize(
    ("facts", "stages"),
    [
        ({}, []),
        ({"slow_jpegs": True}, ["decode"]),
        ({"no_kernel": "it is not compiled"}, ["preprocess"]),
        ({"quantised": False}, ["compute"]),
        ({"quantised": False, "vnni": False}, []),
        ({"quantised": False, "on_cpu": False}, []),
    ],
)
def test_estimates_are_those_that_apply(facts: dict[str, Any], stages: list[str]) -> None:
    found = known_estimates(**{**NOTHING, **facts})
    assert [each.stage for each in found] == stages
    assert all(0 < each.factor < 1 for each in found)
    assert all(facts["no_kernel"] in each.change for each in found if each.stage == "preprocess")


def test_fastest_measured_batch_is_advised_where_computing_is_the_limit() -> None:
    rates = {8: 68.75, 16: 65.0, 32: 62.5, 64: 60.0}
    sentence = "Batches of 8 are computed 10% faster than batches of 32 (68.8 and 62.5 images/s, measured here): use --batch-size 8."
    assert _advice(ON_CPU, CPU, measured=50.0, batch_rates=rates) == [sentence]
    assert _advice(ON_CPU, CPU, measured=50.0, batch_rates={**rates, 8: 65.0}) == [], "4 % are within the noise"
    assert not any("Batches" in each for each in _advice(SLOW_HOST, CARD, measured=400.0, batch_rates=rates))
    little: dict[Stage, float] = {"decode": 0.038, "compute": 0.001}  # 2 of 40 ms
    assert _advice(little, CPU, measured=50.0, batch_rates=rates) == []


def test_threads_that_leave_cores_idle_are_told() -> None:
    costs: dict[Stage, float] = {"decode": 0.004, "compute": 0.1}
    setup = replace(CPU, workers=4, cores=4, threads=1)
    assert _advice(costs, setup, measured=10.0) == ["Computing uses 1 of 4 cores: use --threads 4."]


def test_pipeline_below_its_limit_is_told_what_may_be_wrong() -> None:
    many = replace(CARD, workers=16, cores=16)
    sentences = _advice(SLOW_HOST, many, measured=800.0, cpus=16, physical_cores=16)
    assert sentences[-1] == (
        "The whole pipeline reaches 50% of its limit; 16 workers in one process wait for its interpreter: use two processes, each "
        "with half of the files and --workers 8."
    )
    assert _advice(ON_CPU, CPU, measured=46.0) == [
        "The whole pipeline reaches 92% of its limit: measure again with a longer --duration, and without other load on this machine."
    ]


def test_pipeline_above_its_limit_was_disturbed() -> None:
    (sentence,) = _advice(ON_CPU, CPU, measured=60.0)
    assert sentence.startswith("The whole pipeline reaches 120% of its limit, so other programs slowed the measurement")


def test_slow_ranking_is_told() -> None:
    costs: dict[Stage, float] = {"decode": 0.001, "compute": 0.001, "post_process": 0.02}
    assert "One thread ranks the results, which is the limit: run two processes, each on half of the files." in _advice(
        costs, CARD, measured=50.0
    )


def test_hyper_threads_and_fractions_of_a_quota_make_the_limit_uncertain() -> None:
    (sentence,) = _advice(
        ON_CPU, replace(CPU, workers=4, cores=4, threads=4), measured=55.0, physical_cores=2
    )  # 8 + 64 ms
    assert sentence.startswith("The 4 CPUs are 2 cores with hyper-threads; the limit counts every CPU as a core")
    assert _advice(ON_CPU, CPU, measured=50.0, physical_cores=None) == []
    assert _advice(ON_CPU, CPU, measured=50.0, physical_cores=2) == [], "a quota of two of four CPUs on two cores"
    (sentence,) = _advice(ON_CPU, replace(CPU, cores=1.5), measured=46.875)  # 8 + 24 ms
    assert sentence == "The container's quota of 1.5 CPUs stops 2 threads in turn: a whole number of CPUs wastes less."
