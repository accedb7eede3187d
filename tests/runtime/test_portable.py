"""The runtime asks for nothing that Windows lacks: pictures are made, saved, read back and repeated without it.

A stand-in, for want of a machine: the modules and names are taken away, and files that are open cannot be replaced.
"""

import subprocess
import sys
import textwrap

LIKE_WINDOWS = '''
import os, signal, sys

for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in (
    "sched_getaffinity", "O_NOFOLLOW", "O_DIRECTORY", "O_NONBLOCK", "O_CLOEXEC", "fork", "register_at_fork",
    "getuid", "geteuid", "getgid", "killpg", "setsid", "mkfifo", "pread",
):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGHUP", "SIGKILL"):
    delattr(signal, name)

def in_use(path):
    """Whether this process has the file open, or mapped."""
    path = os.path.realpath(path)
    listed = [f"/proc/self/fd/{each}" for each in os.listdir("/proc/self/fd")]
    opened = [os.readlink(each) for each in listed if os.path.lexists(each)]  # what listed them is closed again
    with open("/proc/self/maps") as maps:
        return path in opened or any(line.rstrip().endswith(path) for line in maps)

def refusing(call, what):
    def checked(*paths, **options):
        for path in paths:
            if in_use(path):
                raise PermissionError(13, f"{what} refused: the file is in use", str(path))
        return call(*paths, **options)
    return checked

def open_file(path, flags, *rest, real=os.open, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "folders cannot be opened", str(path))
    return real(path, flags, *rest, **options)

def rename(source, target, real=os.rename):
    if os.path.exists(target):
        raise FileExistsError(17, "the target is there", str(target))
    return real(source, target)

os.replace, os.unlink, os.remove = (refusing(each, each.__name__) for each in (os.replace, os.unlink, os.remove))
os.open, os.rename = open_file, refusing(rename, "rename")
'''


def python(code, *arguments):
    """Run code in a fresh interpreter on a machine that is a little like Windows."""
    command = [sys.executable, "-c", LIKE_WINDOWS + textwrap.dedent(code), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_picture_is_made_saved_read_back_and_repeated(sample_store, tmp_path):
    python(
        """
        import clipskip
        with clipskip.open(sys.argv[1]) as pipe:
            result = pipe("a red circle", clip_skip=2, seed=1, steps=4, width=64, height=64)
            result.save(sys.argv[2])
            result.save(sys.argv[2])  # in place of itself
            request = clipskip.read_request(sys.argv[2])
            assert request == result.alone(0), request
            assert pipe(request).images[0].tobytes() == result.images[0].tobytes()
        """,
        sample_store,
        tmp_path / "a.png",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_the_command_line_makes_a_picture_and_repeats_it(sample_store, tmp_path):
    out = python(
        """
        from clipskip.__main__ import main
        store, folder = sys.argv[1:]
        options = ["--steps", "4", "--width", "64", "--height", "64", "--seed", "3", "--out", folder]
        assert main(["generate", store, "a blue star", *options]) == 0
        assert main(["generate", store, "--from", folder + "/00001-3.png", "--out", folder + "/again.png"]) == 0
        assert main(["generate", store, "a ring", *options[:-1], folder + "/again.png"]) == 2
        assert main(["generate", store, "--from", folder + "/00001-3.png", "--out", folder + "/again.png",
                     "--overwrite"]) == 0
        """,
        sample_store,
        tmp_path,
    )
    assert [line.rpartition("/")[2] for line in out.splitlines()] == ["00001-3.png", "again.png", "again.png"]
    first, again = (tmp_path / name for name in ("00001-3.png", "again.png"))
    assert first.read_bytes() == again.read_bytes()
