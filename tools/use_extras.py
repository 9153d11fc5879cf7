"""What an install of the package does with each extra, and says where one is missing; used by ``check_packages.py``."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ALL = (
    "bulk",
    "compile",
    "dataframe",
    "export",
    "heif",
    "jpeg",
    "openvino",
    "ray",
    "report",
    "search",
    "serve",
    "tokenizers",
)
"""The extras of ``all``, which every one of ``WORK`` belongs to."""
NEEDING = {
    "export": "export demo -o missing",
    "compile": "compile tiny --precision int8 --calib demo -o missing",
    "openvino": "compile tiny --target openvino -o missing",
    "bulk": "embed tiny-cpu photos -o missing",
    "ray": "embed tiny-cpu photos -o missing --shard-format npy --engine ray",
    "report": "report eval.json -o missing.html",
    "search": "index rows.npy --bundle tiny-cpu -o missing --approximate",
    "serve": "serve tiny-cpu --port 0",
    "tokenizers": "classify words-cpu photos --labels labels.txt",
}
"""Extra -> a command that needs it. Files of the extras ``heif`` and ``jpeg`` are read without them too, unless they are HEIC."""


class Install:
    """An installed clipmlu, which works in a folder with ``tiny``, ``tiny-cpu``, ``words-cpu``, ``photos`` and ``labels.txt``.

    Args:
        programs: folder of the environment's programs.
        work: the folder.
        extras: what was installed.
    """

    def __init__(self, programs: Path, work: Path, extras: set[str]) -> None:
        self._programs = programs
        self._environment = {**os.environ, "CLIPMLU_CACHE_DIR": str(work / "cache")}
        self.work = work
        self.extras = extras
        self.model, self.bundle = ("demo", "demo-cpu") if "export" in extras else ("tiny", "tiny-cpu")

    def start(self, program: str, *words: object) -> subprocess.Popen[str]:
        """Start one of the environment's programs."""
        command = [str(self._programs / program), *map(str, words)]
        return subprocess.Popen(  # noqa: S603
            command, cwd=self.work, env=self._environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def attempt(self, *words: object) -> tuple[int, str, str]:
        """Run a command of clipmlu; return its exit code, stdout and stderr."""
        process = self.start("clipmlu", *words)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def clipmlu(self, *words: object) -> str:
        """Run a command of clipmlu that must succeed, and return what it prints."""
        code, out, err = self.attempt(*words)
        if code:
            fail(f"'clipmlu {' '.join(map(str, words))}' ended with {code}:\n{out}{err}")
        return out

    def python(self, code: str) -> str:
        """Run a piece of Python that must succeed, and return what it prints."""
        process = self.start("python", "-c", code)
        out, err = process.communicate(timeout=300)
        if process.returncode:
            fail(f"Python ended with {process.returncode} in:\n{code}\n{err}")
        return out.strip()

    def classes(self, bundle: str, *images: str) -> list[str]:
        """Return the first class of each image."""
        out = self.clipmlu("classify", bundle, *images, "--labels", "labels.txt", "--format", "json", "--top-k", "1")
        return [each["predictions"][0]["class_name"] for each in json.loads(out)["results"]]


def fail(message: str) -> NoReturn:
    """End the program with a line."""
    sys.exit(f"check_packages: {message}")


def expect(what: str, found: Any, expected: Any) -> None:
    """End the program unless two values are equal."""
    if found != expected:
        fail(f"{what}: {found!r}; expected {expected!r}")


def use_extras(install: Install) -> None:
    """Do the work of the installed extras, and check what is said about the others."""
    done = [name for name in WORK if name in install.extras]
    for name in done:
        WORK[name](install)
    missing = check_missing(install)
    print(f"used the extras: {', '.join(done) or 'none'}; missing ones are named: {', '.join(missing) or 'none'}")


def check_missing(install: Install) -> list[str]:
    """Check that a command whose extra is missing says so in one line, and leaves nothing; return these extras."""
    install.clipmlu("embed", "tiny-cpu", "photos", "-o", "rows.npy", "--overwrite")
    absent = [name for name in NEEDING if name not in install.extras]
    missing = [
        name for name in absent if name != "openvino" or "compile" in install.extras
    ]  # one extra after the other
    for name in missing:
        code, out, err = install.attempt(*NEEDING[name].split())
        if (code, out, err.count("\n")) != (1, "", 1) or f"pip install 'clipmlu[{name}]'" not in err:
            fail(f"'clipmlu {NEEDING[name]}' without the extra {name} ended with {code}:\n{out}{err}")
        if left := list(install.work.glob("missing*")):
            fail(f"'clipmlu {NEEDING[name]}' without the extra {name} left {left}")
    return missing


def _use_export(install: Install) -> None:
    """The demo model, whose accuracy is known."""
    install.clipmlu("export", "demo", "-o", "demo")
    install.clipmlu("compile", "demo", "--target", "cpu", "-o", "demo-cpu")
    labels = (install.work / "labels.txt").read_text().split("\n")
    found = install.classes("demo-cpu", *(f"photos/{label.replace(' ', '-')}.png" for label in labels if label))
    expect("classes of the demo model", found, [label for label in labels if label])


def _use_compile(install: Install) -> None:
    install.clipmlu(
        "compile",
        install.model,
        "--target",
        "cpu",
        "--precision",
        "int8",
        "--calib",
        "demo",
        "--calib-samples",
        64,
        "-o",
        "int8",
    )
    report = install.work / "int8.json"
    install.clipmlu("eval", "int8", "--dataset", "demo", "--samples", 100, "--output", report)
    result = json.loads(report.read_text())
    expect("images of the evaluation in 8 bits", result["images"], 100)
    if install.model == "demo" and result["top1"] < 0.9:
        fail(f"the demo model in 8 bits has top-1 {result['top1']}; expected 0.9 or more")
    install.clipmlu("lower", install.model, "--for", "mlu", "-o", "lowered")
    if not list((install.work / "lowered").glob("image*.onnx")):
        fail("'clipmlu lower' wrote no graph of the image tower")


def _use_openvino(install: Install) -> None:
    """Without the extra ``compile`` nothing is compiled, and ``doctor`` must see OpenVINO."""
    if not re.search(r"^ok +target openvino", install.clipmlu("doctor"), flags=re.MULTILINE):
        fail("'clipmlu doctor' does not see OpenVINO")
    if "compile" not in install.extras:
        return
    install.clipmlu("compile", install.model, "--target", "openvino", "-o", "openvino")
    expect("classes of OpenVINO", install.classes("openvino", "photos"), install.classes(install.bundle, "photos"))


def _use_bulk(install: Install) -> None:
    install.clipmlu("embed", install.bundle, "photos", "-o", "job", "--shard-size", 4)
    install.clipmlu("job", "job", "--verify")
    install.clipmlu("job", "job", "--export", "all.parquet")
    rows = install.python("import pyarrow.parquet as p; print(p.read_table('all.parquet').num_rows)")
    expect("rows of the Parquet file", int(rows), len(list((install.work / "photos").iterdir())))


def _use_ray(install: Install) -> None:
    """A job on a local Ray has the bytes of one in this process."""
    for name, options in (("here", ()), ("ray", ("--engine", "ray", "--processes", 2))):
        install.clipmlu(
            "embed", install.bundle, "photos", "-o", f"job-{name}", "--shard-size", 4, "--shard-format", "npy", *options
        )
        install.clipmlu("job", f"job-{name}", "--export", f"{name}.npy")
    here, ray = ((install.work / f"{name}.npy").read_bytes() for name in ("here", "ray"))
    expect("whether the embeddings of Ray are those of one process", ray == here, True)


def _use_report(install: Install) -> None:
    install.clipmlu("eval", install.bundle, "--dataset", "demo", "--samples", 50, "--output", "eval.json")
    install.clipmlu("report", "eval.json", "-o", "page.html")
    page, text = (install.work / "page.html").read_text(), (install.work / "page.md").read_text()
    top1 = json.loads((install.work / "eval.json").read_text())["top1"]
    if "<svg" not in page or not all(f"{top1 * 100:.1f}" in each or f"{top1:.4f}" in each for each in (page, text)):
        fail(f"the report shows no figure, or no top-1 of {top1}")


def _use_search(install: Install) -> None:
    """An approximate index, of enough rows for one, finds a row by its own image."""
    photos = [f"photos/{path.name}" for path in (install.work / "photos").iterdir()]
    install.clipmlu("embed", install.bundle, "photos", "-o", "few.npy")
    install.python(
        "import json, numpy as np; few = np.load('few.npy'); r = np.random.default_rng(0);"
        "other = r.standard_normal((3000, few.shape[1])).astype('float32');"
        "rows = np.concatenate([few, other / np.linalg.norm(other, axis=1, keepdims=True)]); np.save('many.npy', rows);"
        "names = json.load(open('few.ids.json')) + [f'other/{n}' for n in range(3000)];"
        "json.dump(names, open('many.ids.json', 'w'))"
    )
    built = json.loads(
        install.clipmlu("index", "many.npy", "--bundle", install.bundle, "-o", "index", "--approximate", "--json")
    )
    if not built["approximate"]:
        fail("the index of 3,010 rows has no approximate one")
    found = json.loads(install.clipmlu("search", "index", photos[0], "-k", 1, "--json", "--html", "found.html"))
    expect("what the approximate search finds", found["queries"][0]["hits"][0]["id"], photos[0])
    if "<img" not in (install.work / "found.html").read_text():
        fail("the contact sheet of the search shows no image")


def _use_serve(install: Install) -> None:
    """One request, with the answer of ``classify``; SIGTERM ends the server in order."""
    photo = sorted((install.work / "photos").iterdir())[0]
    server = install.start("clipmlu", "serve", install.bundle, "--labels", "labels.txt", "--port", 0)
    try:
        assert server.stderr is not None
        seen: list[str] = []
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", seen[-1] if seen else "")):
            if not (line := server.stderr.readline()):
                fail(f"the server gave no address:\n{''.join(seen)}")
            seen.append(line)
        request = urllib.request.Request(  # noqa: S310
            f"{address[0]}/v1/classify", photo.read_bytes(), {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            result = json.load(answer)["results"][0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    expect(
        "the server's class",
        result["predictions"][0]["class_name"],
        install.classes(install.bundle, f"photos/{photo.name}")[0],
    )
    expect("the server's exit code", server.returncode, 143)


def _use_dataframe(install: Install) -> None:
    code = f"import clipmlu; c = clipmlu.load({install.bundle!r}).classifier(['a', 'b']); print(len(c.predict(['photos/red-circle.png'] * 3).to_dataframe()))"
    expect("rows of the data frame", install.python(code), "3")


def _use_heif(install: Install) -> None:
    install.python(
        "import pillow_heif; from PIL import Image; pillow_heif.register_heif_opener();"
        "Image.open('photos/red-circle.png').convert('RGB').save('red.heic', quality=95)"
    )
    expect(
        "the class of a HEIC file",
        install.classes(install.bundle, "red.heic"),
        install.classes(install.bundle, "photos/red-circle.png"),
    )


def _use_jpeg(install: Install) -> None:
    install.python(
        "from PIL import Image; Image.open('photos/red-circle.png').convert('RGB').save('red.jpg', quality=95)"
    )
    expect(
        "the class of a JPEG file",
        install.classes(install.bundle, "red.jpg"),
        install.classes(install.bundle, "photos/red-circle.png"),
    )
    if not re.search(r"^ok +JPEG decoding +simplejpeg", install.clipmlu("doctor"), flags=re.MULTILINE):
        fail("'clipmlu doctor' does not see simplejpeg")


def _use_tokenizers(install: Install) -> None:
    """A model whose tokenizer is not that of CLIP, but for these texts makes the ids of the tiny model's."""
    found, expected = (install.classes(bundle, "photos") for bundle in ("words-cpu", "tiny-cpu"))
    expect("the classes of a model with another tokenizer", found, expected)


WORK: dict[str, Callable[[Install], None]] = {
    "export": _use_export,
    "compile": _use_compile,
    "openvino": _use_openvino,
    "bulk": _use_bulk,
    "ray": _use_ray,
    "report": _use_report,
    "search": _use_search,
    "serve": _use_serve,
    "dataframe": _use_dataframe,
    "heif": _use_heif,
    "jpeg": _use_jpeg,
    "tokenizers": _use_tokenizers,
}
"""Extra -> its work; the demo model that ``export`` makes is used by the others."""
