"""What a stranger does with an installed clipskip: `python -I tests/installed.py STORE`, in an environment of its own.

Run by `make check-install` where there is no torch and no pytest. Fails with an AssertionError that says what is wrong.
"""

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

import clipskip

PACKAGES, MEGABYTES = 9, 165  # of `.[cpu]`, clipskip itself included
SAMPLE = Path(__file__).parents[1] / "export" / "sample"
SMALL = ["--steps", "2", "--width", "64", "--height", "64"]


def command(*arguments: object, status: int = 0) -> dict[str, object]:
    """Run the installed command with --json; its answer."""
    line = [str(Path(sys.executable).with_name("clipskip")), *map(str, arguments), "--json"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, f"{line}: status {done.returncode}\n{done.stderr}"
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def check_packages() -> None:
    """What is installed is small, and has no torch in it."""
    installed = [each for each in metadata.distributions() if each.metadata["Name"] not in ("pip", "setuptools")]
    names = sorted(f"{each.metadata['Name']} {each.version}" for each in installed)
    paths = {Path(str(file.locate())) for each in installed for file in each.files or ()}
    brought = [path for path in paths if path.suffix != ".pyc" and path.exists()]  # pip adds the bytecode
    size = sum(path.stat().st_size for path in brought) / 1e6
    print(f"{len(names)} packages, {size:.0f} MB: {', '.join(names)}")
    assert len(names) <= PACKAGES
    assert size <= MEGABYTES


def check_pictures(store: str) -> None:
    """In Python and on the command line, the same bytes; a picture repeats itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with clipskip.open(store) as pipe:
            pictures = {skip: pipe("a red circle", clip_skip=skip, seed=7, steps=2).images[0] for skip in (1, 2, 13)}
            pipe("a red circle", clip_skip=2, seed=7, steps=2).save(folder / "python.png")
        assert len({picture.tobytes() for picture in pictures.values()}) == 3
        command("generate", store, "/clipskip:2 /seed:7 /steps:2 a red circle", "--out", folder / "command.png")
        command("generate", store, "--from", folder / "command.png", "--out", folder / "again.png")
        assert len({(folder / f"{name}.png").read_bytes() for name in ("python", "command", "again")}) == 1
        assert clipskip.read_request(folder / "again.png").clip_skip == 2


def main(store: str) -> None:
    check_packages()
    check_pictures(store)
    for verb in ("inspect", "verify"):
        command(verb, store)
    targets = command("doctor")["targets"]
    assert isinstance(targets, dict)
    assert targets["onnxruntime"]["run"] is None
    error = command("generate", store, "a cat", "--clip-skip", "14", *SMALL, status=2)["error"]
    assert isinstance(error, dict)
    assert error["field"] == "clip_skip"
    assert "torch" in str(command("export", SAMPLE, "--out", "nothing", status=5))


if __name__ == "__main__":
    main(sys.argv[1])
