"""Memory safety, thread safety and malformed files: sanitizers, valgrind, and ten thousand mutated manifests."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.cpp.conftest import HERE, run

MUTATIONS = 10_000
# Every finding ends the program with a non-zero status, which `run` reports.
ADDRESS = {"ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}
THREAD = {"TSAN_OPTIONS": f"halt_on_error=1:suppressions={HERE / 'tsan.supp'}"}


def test_threads(native, toy_folder):
    assert "8 threads, 0 with a wrong result" in run(native / "threads", toy_folder).stdout


def test_threads_on_a_real_graph(native, tiny_folder):
    assert "8 threads, 0 with a wrong result" in run(native / "threads", tiny_folder).stdout


def test_address_and_undefined_behaviour(build, toy_folder, tmp_path):
    folder = build("address", "c_header", "wrapper", "threads", "cycles", "internals", "graphs", "graphs_rtx")
    environment = os.environ | ADDRESS
    run(folder / "c_header", env=environment)
    run(folder / "internals", env=environment)
    for program in ("wrapper", "threads"):
        run(folder / program, toy_folder, env=environment)
    run(folder / "cycles", toy_folder, 10, env=environment)
    for builder in ("", "_rtx"):
        run(folder / f"graphs{builder}", folder / f"libfake_tensorrt{builder}.so", tmp_path, env=environment)


@pytest.mark.parametrize(("sanitizer", "code", "name"), [
    ("address", "#include <stdlib.h>\nint main(void) { return malloc(100) == (void *)1; }\n", "LeakSanitizer"),
    ("undefined", "int main(int n, char **v) { volatile int x = 2147483647 + n; return !v || x == 3; }\n",
     "signed integer overflow"),
    ("thread", """
#include <pthread.h>
int x;
void *add(void *p) { x++; return p; }
int main(void) { pthread_t t; pthread_create(&t, 0, add, 0); x++; return pthread_join(t, 0); }
""", "data race"),
], ids=["address", "undefined", "thread"])
def test_the_sanitizers_detect_errors(tmp_path, sanitizer, code, name):
    """A program that is wrong on purpose fails with the options of the other tests."""
    (tmp_path / "wrong.c").write_text(code)
    run("cc", "-O0", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", tmp_path / "wrong.c",
        "-o", tmp_path / "wrong", "-lpthread")
    done = subprocess.run([tmp_path / "wrong"], env=os.environ | ADDRESS | THREAD, capture_output=True, text=True,
                          check=False)
    assert done.returncode != 0
    assert name in done.stderr


def test_data_races(build, toy_folder):
    folder = build("thread", "threads")
    run(folder / "threads", toy_folder, env=os.environ | THREAD)


def test_mutated_manifests_and_truncated_graphs(build, toy_folder, tmp_path):
    folder = build("address", "fuzz")
    done = run(folder / "fuzz", toy_folder, MUTATIONS, env=os.environ | ADDRESS | {"TMPDIR": str(tmp_path)})
    assert f"{MUTATIONS} manifests: " in done.stdout
    assert f"{MUTATIONS} mutated graphs: " in done.stdout
    assert f"{MUTATIONS // 20} truncated graphs: " in done.stdout
    print(done.stdout)


@pytest.mark.skipif(not shutil.which("valgrind"), reason="needs valgrind")
def test_valgrind_finds_no_leak_in_a_hundred_cycles(native, toy_folder):
    done = run("valgrind", "--leak-check=full", "--show-leak-kinds=definite,indirect",
               "--errors-for-leak-kinds=definite,indirect", "--error-exitcode=1",
               f"--suppressions={HERE / 'valgrind.supp'}", native / "cycles", toy_folder, 100)
    assert "definitely lost: 0 bytes" in done.stderr or "no leaks are possible" in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("clang++"), reason="needs clang++")
def test_libfuzzer(build, toy_folder, tmp_path):
    folder = build("libfuzzer", "fuzz")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    shutil.copy(toy_folder / "manifest.json", corpus)
    environment = os.environ | ADDRESS | {"DPT_FUZZ_BUNDLE": str(toy_folder), "TMPDIR": str(tmp_path)}
    done = run(folder / "fuzz", "-runs=100000", "-max_total_time=60", "-max_len=20000", corpus, env=environment,
               cwd=tmp_path)
    assert "Done" in done.stderr
