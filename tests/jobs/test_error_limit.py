"""``--max-errors``: numbers, percentages, and jobs that stop."""

from __future__ import annotations

from pathlib import Path

import pytest

import support
from cli.conftest import Run
from clipmlu.bundle.directory import CompiledBundle
from clipmlu.errors import InputError, OptionError
from clipmlu.jobs.error_limit import parse_error_limit
from clipmlu.jobs.options import JobOptions
from clipmlu.jobs.run import run_job


@pytest.mark.parametrize(
    ("text", "errors", "images", "at_end", "exceeded"),
    [
        ("0", 0, 5, True, False),
        ("0", 1, 5, False, True),
        (3, 3, 10**6, False, False),
        ("3", 4, 10**6, False, True),
        ("1%", 10, 1000, False, False),
        ("1%", 11, 1000, False, True),
        ("1%", 999, 999, False, False),  # too early to judge
        ("1%", 999, 999, True, True),
        ("0.5%", 5, 1000, True, False),
        ("0.5%", 6, 1000, True, True),
        ("100%", 5, 5, True, False),
    ],
)
def test_limits(text: str | int, errors: int, images: int, at_end: bool, exceeded: bool) -> None:
    assert parse_error_limit(text).is_exceeded(errors, images, at_end=at_end) is exceeded


@pytest.mark.parametrize("text", ["", "-1", "1.5", "%", "101%", "1 %", "many", "1e3", "nan%", "١", "9" * 5000])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"expected a number of images, such as 100, or a percentage, such as 1%"):
        JobOptions(max_errors=text)


def test_job_stops_keeps_its_shards_and_goes_on_with_a_higher_limit(compiled: CompiledBundle, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(6):
        path = tmp_path / "images" / f"{number}.png"
        support.picture(number).save(path)
        if number in (1, 3, 5):
            path.write_bytes(b"no image")

    def run(limit: int | str | None) -> list[int]:
        done: list[int] = []
        options = JobOptions(shard_size=2, shard_format="npy", max_errors=limit)
        try:
            run_job(
                compiled.path,
                [tmp_path / "images"],
                tmp_path / "job",
                options,
                on_shard=lambda record: done.append(record.number),
            )
        finally:
            assert len(list((tmp_path / "job" / "records").iterdir())) == len(
                (tmp_path / "job" / "errors.jsonl").read_text().splitlines()
            )
        return done

    with pytest.raises(
        InputError, match=r"2 of 4 image\(s\) could not be read, more than 1 \(--max-errors\); see '.*errors"
    ):
        run(1)
    with pytest.raises(InputError, match="2 of 4"):
        run(0)  # those of the shards that are done count
    with pytest.raises(InputError, match=r"3 of 6 image\(s\) could not be read, more than 49% \(--max-errors\)"):
        run("49%")  # judged at the end
    assert run("50%") == []
    assert run(None) == []


def test_after_the_limit_the_command_says_what_to_do_instead(
    compiled: CompiledBundle, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "images").mkdir()
    support.picture(1).save(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    command = ("embed", compiled.path, tmp_path / "images", "-o", tmp_path / "job", "--shard-format", "npy")
    code, _, err = run(*command, "--max-errors", 0)
    assert code == 1
    assert "go on with a higher limit, or correct the images and begin again with --overwrite." in err
    assert "the same command goes on" not in err
