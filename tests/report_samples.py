"""One report of each kind, with long names and numbers of every length, for tests of what people see."""

from __future__ import annotations

from typing import Any

from clipmlu.backends.provenance import Provenance
from clipmlu.jobs.state import JobState
from clipmlu.magicmind.mm_run import Latency, MmRunReport, Summary
from clipmlu.measure.accuracy.report import AccuracyReport, BaselineComparison, ClassAccuracy, Confusion
from clipmlu.measure.compare.ablation import Ablation, RoleCost
from clipmlu.measure.compare.compare import ComparisonReport
from clipmlu.measure.compare.nodes import NodeComparison, TowerComparison
from clipmlu.measure.compare.predictions import EmbeddingComparison, FlippedImage, PredictionComparison
from clipmlu.measure.compare.sides import SideFacts
from clipmlu.measure.machine import Machine
from clipmlu.measure.retrieval.report import DirectionReport, Recall, RetrievalReport
from clipmlu.measure.speed.bottleneck import PipelineReport, StageCost
from clipmlu.measure.speed.limit import PipelineLimit
from clipmlu.measure.speed.loads import ScenarioResult
from clipmlu.measure.speed.scenarios import LatencyStatistics
from clipmlu.measure.speed.server import ServerProbe
from clipmlu.measure.speed.speed import SpeedReport, TowerSpeed
from clipmlu.measure.statistics import Interval, wilson_interval
from clipmlu.specs import ModelId, Precision, QuantisationOptions
from clipmlu.tune.run_report import RunReport, Step
from clipmlu.tune.sweep_report import SweepReport, SweepRow
from clipmlu.tune.trial import SearchReport, Trial

PATH = "/data/my models/ViT-B-32-mlu"  # 28 cells: it fits in each of the widths
LONG_CLASS = "一只坐在长满绿草的山坡上晒太阳的橘黄色的小猫 number 747.5"  # 44 cells and 13
MACHINE = Machine(
    cpu="Intel(R) Xeon(R) Gold 6530 Processor @ 2.10GHz",
    cpus=128,
    cores=31.5,
    physical_cores=64,
    instructions=("AVX2", "AVX512", "VNNI", "AMX"),
    memory_bytes=None,
    system="Linux",
    python="3.11",
)


def provenance(*, emulated: bool = True) -> Provenance:
    return Provenance(
        model=ModelId(name="ViT-SO400M-14-SigLIP-384", pretrained="webli"),
        bundle_digest="a" * 64,
        target="emulated-mlu" if emulated else "cpu",
        precision=Precision.QINT8_MIXED_FLOAT16,
        emulated=emulated,
        devices=(0,),
        tool_versions={},
    )


def accuracy() -> AccuracyReport:
    return AccuracyReport(
        provenance=provenance(),
        dataset=f"imagefolder:{PATH}",
        split="test",
        templates=("{}",),
        batch_size=32,
        classes=1000,
        images=49_991,
        skipped=(),
        top1=0.63412,
        top1_interval=Interval(low=0.62987, high=0.63834),
        top5=0.88761,
        top5_interval=Interval(low=0.88481, high=0.89035),
        mean_per_class=0.63399,
        expected_calibration_error=0.05123,
        per_class=(
            ClassAccuracy(class_name=LONG_CLASS, images=12_345, correct=0, top1=0.01234),
            ClassAccuracy(class_name="dog 🐕", images=7, correct=1, top1=0.14286),
        ),
        confusions=(Confusion(class_name=LONG_CLASS, predicted=LONG_CLASS[::-1], images=98_765),),
        elapsed_s=1.0,
        images_per_second=1234.56,
        baseline=BaselineComparison(bundle_digest="b" * 64, top1=0.65432, drop=0.0202, max_drop=0.015),
    )


def scenario(name: Any, metric: Any, value: float | None, first: float, **more: Any) -> ScenarioResult:
    numbers = [first + step for step in (0.111, 0.222, 0.333, 0.444, 0.555, 0.666)]
    fields = ("mean_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms")
    return ScenarioResult(
        scenario=name,
        metric=metric,
        value=value,
        queries=123_456,
        samples_per_query=64,
        padding_per_query=0,
        elapsed_s=1.0,
        images_per_second=54_321.98,
        texts_per_second=None,
        latency=LatencyStatistics(**dict(zip(fields, numbers, strict=True))),
        latencies_ms=(),
        **more,
    )


def speed() -> SpeedReport:
    server = {
        "latency_bound_ms": 12.5,
        "probes": (ServerProbe(queries_per_second=1024.75, queries=99_999, p99_ms=13.875, within_bound=False),),
    }
    stages = {
        stage: StageCost(
            seconds_per_image=0.0123456 + number,
            share=0.17,
            images_per_second=876_543.21,
            together_seconds_per_image=0.0765432,
        )
        for number, stage in enumerate(("decode", "post_process"))
    }
    return SpeedReport(
        provenance=provenance(),
        dynamic_shape=True,
        batch_size=256,
        threads=0,
        in_flight=2,
        open_s=12.3456,
        towers=(
            TowerSpeed(
                tower="image",
                target="mlu",
                precision=Precision.FORCE_FLOAT32,
                kernels="",
                emulated=True,
                load_s=98.7654,
                first_batch_s=1.23456,
                scenarios=(
                    scenario("single-stream", "p90_latency_ms", 10.333, 10.0),
                    scenario("server", "queries_per_second", None, 80.0, **server),
                    scenario("offline", "samples_per_second", 54_321.98, 20_000.0),
                ),
            ),
        ),
        pipeline=PipelineReport(
            images=65_536,
            skipped=3,
            files=64,
            drawn=True,
            workers=16,
            elapsed_s=1.0,
            images_per_second=2345.67,
            stages=stages,  # type: ignore[arg-type]
            batch_rates={},
            host_options={},
            verdict=PipelineLimit(
                bound_by="host",
                slowest_stage="decode",
                limits={},
                images_per_second=1.0,
                measured_images_per_second=1.0,
                fraction=1.0,
                text="bound by the host's decoding, which allows 3456.7 images/s; 92 % of what it allows were reached",
            ),
            advice=("--fast-preprocess would prepare an image in 6.52 ms instead of 13.58 ms of a core",),
        ),
        peak_memory_bytes=3 << 30,
        worker_peak_memory_bytes=5 << 30,
        machine=MACHINE,
    )


def sweep() -> SweepReport:
    row = SweepRow(
        precision=Precision.QINT16_MIXED_FLOAT32,
        batch_size=1024,
        images_per_second=12_345.67,
        slowest_images_per_second=12_111.19,
        fastest_images_per_second=12_999.94,
        latency_ms=1234.5678,
        top1=0.61234,
        image_tower_bytes=1234 << 20,
        bundle_bytes=5678 << 20,
        on_front=True,
        emulated=True,
    )
    failed = SweepRow(
        precision=Precision.QINT8_MIXED_FLOAT16,
        emulated=True,
        failure="same class as in float32 for 87.5 % of the images; 95 % are needed",
        gate_failed=True,
    )
    return SweepReport(
        provenance=provenance(),
        dataset="cifar100",
        split="test",
        images=10_000,
        threads=0,
        repetitions=3,
        duration_ms=1000,
        rows=(row, failed),
        machine=MACHINE,
    )


def tool() -> MmRunReport:
    latency = Latency(
        min_ms=1.125, max_ms=987.625, mean_ms=12.375, median_ms=12.25, p90_ms=13.5, p95_ms=14.75, p99_ms=15.875
    )
    summary = Summary(
        format="old",
        iterations=4096,
        host_wall_s=1.0,
        compute_s=None,
        compute_device_s=None,
        tool_qps=320.5,
        counted_rows=4,
        latencies={"compute": latency},
    )
    return MmRunReport(
        tool=f"{PATH}/mm_run",
        command=(),
        provenance=provenance(emulated=False),
        tower="image",
        batch_size=4,
        images_per_second=1282.04,
        texts_per_second=None,
        iterations_per_second=320.51,
        summaries=(summary,),
        output_tail="",
    )


def node(place: int, **changes: Any) -> NodeComparison:
    facts: dict[str, Any] = {
        "tensor": f"visual.transformer.resblocks.{place}.mlp.c_proj.output",
        "node": "n",
        "kind": "operator",
        "role": "mlp_out",
        "block": place,
        "elements": 1,
        "cosine": 0.987654,
        "snr_db": 23.456,
        "max_abs_diff": 12.3,
        "minimum": -123.4,
        "maximum": 567.8,
        "reference_minimum": 0.0,
        "reference_maximum": 1.0,
        "float16_share": 0.0123,
        "non_finite": 7,
        "reference_non_finite": 0,
        "quantised_range": (-98.7, 65.4),
        "outside": 0.0345,
        "diverges": True,
    }
    return NodeComparison(**{**facts, **changes})


def comparison() -> ComparisonReport:
    nodes = (node(0, non_finite=0), node(11))
    tower = TowerComparison(rows=512, nodes=nodes, first_divergence=nodes[0], smoothed_apart=13, absent=0, hidden=None)
    embeddings = EmbeddingComparison(
        rows=512, mean_cosine=0.998765, min_cosine=0.912345, snr_db=31.27, max_abs_diff=0.456, non_finite=0
    )
    cost = RoleCost(
        tower="image",
        role="attention_scores",
        operators=144,
        macs_share=0.3456,
        mean_cosine=0.991234,
        recovered=0.004321,
        agreement=0.97654,
        top1=0.64321,
        top1_gain=0.00987,
        mcnemar_p=0.0123,
    )
    flips = (FlippedImage(id=f"{PATH}/1.jpg", class_name=LONG_CLASS, predicted="dog", reference=None),)
    return ComparisonReport(
        measured=SideFacts(path=PATH, kind="compiled", provenance=provenance(), quantisation=None),
        reference=SideFacts(path=PATH, kind="exported", provenance=provenance(emulated=False), quantisation=None),
        dataset="cifar100",
        split="test",
        templates=("{}",),
        images=512,
        skipped=(),
        calibration_overlap=None,
        calibration_prompts=0,
        threshold=0.99,
        towers={"image": tower},
        embeddings={"image": embeddings},
        predictions=PredictionComparison(
            images=512,
            classes=100,
            agreement=0.96875,
            top1=0.61328,
            reference_top1=0.62109,
            right_to_wrong=10,
            wrong_to_right=6,
            wrong_to_wrong=11,
            mcnemar_p=0.4545,
            flips=flips,
        ),
        ablation=Ablation(images=512, mean_cosine={}, agreement=0.95, top1=0.61, float_top1=0.62, roles=(cost,)),
        elapsed_s=1.0,
    )


def job() -> JobState:
    return JobState(
        path=PATH,
        kind="embed",
        provenance=provenance(),
        shard_format="parquet",
        embedding_dim=1152,
        embedding_dtype="float16",
        classes=1_000_000,
        top_k=5,
        shards=4567,
        finished_shards=1234,
        images=1_234_567_890,
        finished_images=987_654_321,
        errors=1234,
        damaged_shards=(),
        size_bytes=12_345_678_901,
        running=None,
    )


def search() -> SearchReport:
    how = QuantisationOptions(granularity="per_axis")
    trial = {"precision": Precision.QINT8_MIXED_FLOAT16, "quantisation": how, "elapsed_s": 12.34}
    figures = {"images": 2000, "top1": 0.60125, "agreement": 0.93, "quantised_share": 0.875}
    return SearchReport(
        provenance=provenance(emulated=False),
        max_drop=0.01,
        confidence=0.95,
        dataset="cifar100",
        split="train",
        images=2000,
        templates="simple",
        reference_top1=0.61250,
        trials=(
            Trial(verdict="failed", reason="same class as in float32 for 87.5 % of the images", **trial),
            Trial(verdict="rejected", drop=0.01125, drop_bound=0.0177, **figures, **trial),
            Trial(verdict="accepted", drop=0.00475, drop_bound=0.0098, **figures, **trial),
        ),
    )


def run() -> RunReport:
    steps = tuple(
        Step(name=name, result="made", elapsed_s=1.25, path=f"{PATH}/{name}") for name in ("export", "compile")
    )
    return RunReport(steps=steps, accuracy=accuracy())


def retrieval() -> RetrievalReport:
    def direction(queries: int, candidates: int, first: int) -> DirectionReport:
        recalls = tuple(
            Recall(k=k, hits=first + k, value=(first + k) / queries, interval=wilson_interval(first + k, queries))
            for k in (1, 5, 10)
        )
        return DirectionReport(
            queries=queries, candidates=candidates, recalls=recalls, mean_rank=7.654, median_rank=2.5
        )

    return RetrievalReport(
        provenance=provenance(),
        pairs=f"{PATH}/captions.csv",
        data_digest="e" * 64,
        split="",
        batch_size=32,
        images=1234,
        texts=4321,
        image_to_text=direction(1234, 4321, 777),
        text_to_image=direction(4321, 1234, 2222),
        groups=1200,
        skipped=(),
        duplicate_images=3,
        images_without_texts=0,
        empty_texts=0,
        repeated_pairs=0,
        shared_texts=0,
        truncated_texts=0,
        elapsed_s=98.75,
    )
