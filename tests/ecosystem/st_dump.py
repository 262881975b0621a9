"""Builds and runs the helper st_dump.c from the repository root."""
import json
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
HELPER = ROOT / "build/tests/ecosystem/st_dump"


def build():
    subprocess.run(["make", "-s", str(HELPER.relative_to(ROOT))], cwd=ROOT, check=True)


def run(*args, **kw):
    """Completed process; stdout is text."""
    return subprocess.run([HELPER, *map(str, args)], text=True, capture_output=True, **kw)


def ok(*args, **kw):
    done = run(*args, **kw)
    assert done.returncode == 0, done.stderr
    return done.stdout


def loads(*args):
    return json.loads(ok(*args))
