"""Ray actors: results, restarts, cards, versions; one local Ray for the module."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

import support
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.cli import main
from clipmlu.errors import BackendUnavailableError, InputError, OptionError, SessionError
from clipmlu.jobs.engines.cards import Cards
from clipmlu.jobs.engines.dispatch import run_tasks
from clipmlu.jobs.engines.options import EngineOptions
from clipmlu.jobs.engines.ray_session import open_ray
from clipmlu.jobs.engines.ray_worker import RayWorker, package_versions
from clipmlu.jobs.evaluation import evaluate_in_parts
from clipmlu.measure.accuracy.evaluate import evaluate
from clipmlu.model import load
from conftest import REPOSITORY
from engine_works import Squares

pytestmark = pytest.mark.ray
TWO = EngineOptions(engine="ray", processes=2)


@pytest.fixture(scope="module", autouse=True)
def ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("ray", reason="needs the extra ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(REPOSITORY / "tests"), prepend=os.pathsep)  # for engine_works in the actors
        patch.setenv("TMPDIR", str(tmp_path_factory.mktemp("locks")))  # locks of cards
        patch.setenv("CLIPMLU_EMULATOR_DEVICES", "2")
        with open_ray(TWO, Cards(indices=(0, 1))) as module:
            yield module


def _name(number: int) -> str:
    return f"number {number}"


@pytest.mark.slow
def test_every_task_has_one_result_even_if_a_worker_holds_more_than_it_is_given(tmp_path: Path) -> None:
    results = list(run_tasks(Squares(tmp_path, depth=50), range(20), TWO))
    assert sorted(results) == [number * number for number in range(20)]


def test_a_killed_worker_changes_no_result_and_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = Squares(tmp_path, depth=2, kills=((5, 1),))
    assert sorted(run_tasks(work, range(12), TWO, describe=_name)) == [number * number for number in range(12)]
    [message] = [record.getMessage() for record in caplog.records]
    assert re.match(r"Ray worker \d+ on \S+ was lost \(\w+\) with (number \d+, )?number 5", message)
    assert int(message.split()[2]) in work.opened()
    assert len(work.opened()) == 3


@pytest.mark.slow
def test_a_task_that_kills_three_workers_is_given_up_and_named_and_all_others_are_done(tmp_path: Path) -> None:
    work = Squares(tmp_path, depth=2, kills=((5, 9),))
    results: list[int] = []
    with pytest.raises(SessionError, match=r"^number 5: 3 workers in a row were killed"):
        results += run_tasks(work, range(12), TWO, describe=_name)
    assert sorted(results) == [number * number for number in range(12) if number != 5]
    assert (tmp_path / "killed-5").read_text() == "xxx"


def test_tasks_are_taken_only_when_a_worker_has_space(tmp_path: Path) -> None:
    given: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(1_000_000):
            given.append(number)
            yield number

    results = run_tasks(Squares(tmp_path, seconds=0.02), numbers(), TWO)
    for done in range(1, 20):
        next(results)
        assert len(given) <= done + 4
    results.close()


def test_an_error_of_a_worker_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^number 3 is refused$"):
        list(run_tasks(Squares(tmp_path, refused=3), range(1000), TWO))


def test_a_warning_of_a_worker_is_logged_in_the_driver(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    list(run_tasks(Squares(tmp_path, warned=2), range(4), TWO))
    assert [record.getMessage() for record in caplog.records] == ["number 2 is odd"]


def test_each_actor_has_a_card_of_its_own(tmp_path: Path) -> None:
    work = Squares(tmp_path, seconds=0.1)
    list(run_tasks(work, range(8), TWO, cards=Cards(indices=None)))
    shares = sorted((tmp_path / f"opened-{pid}").read_text() for pid in work.opened())
    assert [re.search(r"devices=\((\d),\)", share)[1] for share in shares] == ["0", "1"]  # type: ignore[index]


def test_more_processes_than_the_cluster_has_cards_are_refused(tmp_path: Path) -> None:
    options = EngineOptions(engine="ray", processes=3)
    with pytest.raises(OptionError, match=r"^3 processes need a card each, and the Ray cluster has 2; use at most"):
        list(run_tasks(Squares(tmp_path), range(3), options, cards=Cards(indices=None)))


@pytest.mark.slow
def test_lost_card_of_an_actor_is_named_and_costs_no_result(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    work = Squares(tmp_path, loses_a_card=True)
    results = run_tasks(work, range(8), TWO, cards=Cards(indices=None), describe=_name)
    assert sorted(results) == [number * number for number in range(8)]
    [message] = [record.getMessage() for record in caplog.records]
    assert re.match(r"Ray worker \d+ on \S+, card ([01]) has lost its card with number", message)
    assert re.search(r"which will be computed again; 1 other\(s\) go on: card \([01],\) is lost$", message)


def test_a_worker_with_other_packages_is_refused_by_name(tmp_path: Path) -> None:
    versions = {**package_versions(), "pillow": "1.0", "simplejpeg": "2.0"}
    logger = logging.getLogger("clipmlu")
    before = list(logger.handlers)
    outcome = RayWorker(Squares(tmp_path), 1, None, versions, os.getcwd()).open()
    logger.handlers[:] = before
    assert isinstance(outcome.error, BackendUnavailableError)
    assert re.search(
        r"has other packages than .*: pillow \S+ instead of 1\.0, simplejpeg \S+ instead of 2\.0\.", str(outcome.error)
    )
    assert not list(tmp_path.iterdir()), "the work was not opened"


def test_an_evaluation_gives_the_report_of_one_process(compiled: CompiledBundle) -> None:
    dataset = support.Pictures(60, broken=frozenset({7, 33}))
    with load(compiled.path) as encoder:
        reports = [evaluate(encoder, dataset), evaluate_in_parts(encoder, dataset, engine=TWO)]
    serial, parts = [msgspec.structs.replace(report, elapsed_s=1.0, images_per_second=1.0) for report in reports]
    assert parts == serial
    assert serial.images == 58


def test_a_job_has_the_files_of_one_process(
    compiled: CompiledBundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "images").mkdir()
    for number in range(23):
        support.picture(number).save(tmp_path / "images" / f"{number:02}.png")
    (tmp_path / "images" / "07.png").write_bytes(b"no image")

    def run(output: Path, *options: str) -> dict[str, bytes]:
        command = ["embed", str(compiled.path), str(tmp_path / "images"), "-o", str(output), "--shard-size", "4"]
        assert main([*command, "--batch-size", "2", *options]) == 1  # one image cannot be read
        return {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*") if path.is_file()}

    serial = run(tmp_path / "serial")
    capfd.readouterr()
    assert run(tmp_path / "other", "--engine", "ray", "--processes", "2") == serial
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "Wrote 23 rows" in printed.err
    assert "ray" not in printed.err.replace(str(tmp_path), "").lower(), printed.err
