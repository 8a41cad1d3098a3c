"""Building the native library, and living without it."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from halftone.native import build as build_module
from halftone.native import library, unavailable
from halftone.native.build import FOLDER, build, compiler, library_path, source_digest
from halftone.native.library import ABI_VERSION, _open

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
MINIMAL = """
#include <cstdint>
extern "C" std::int32_t halftone_abi_version() { return %d; }
extern "C" const char* halftone_source_digest() { return HALFTONE_SOURCE_DIGEST; }
extern "C" void halftone_use_openmp(void*) {}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder like the package's, with one small source."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "minimal.cpp").write_text(MINIMAL % ABI_VERSION)
    return tmp_path


@needs_compiler
def test_built_library_is_loaded_and_nothing_is_left_behind(folder):
    assert build(folder) is None
    assert _open(library_path(folder)).reason is None
    assert sorted(path.name for path in folder.iterdir()) == sorted([library_path(folder).name, "src"])


@needs_compiler
def test_library_with_another_interface_is_told(folder):
    (folder / "src" / "minimal.cpp").write_text(MINIMAL % (ABI_VERSION + 1))
    assert build(folder) is None
    loaded = _open(library_path(folder))
    assert loaded.library is None and f"interface {ABI_VERSION + 1} instead of {ABI_VERSION}" in str(loaded.reason)


def test_missing_and_damaged_libraries_are_told(folder):
    assert "not built" in str(_open(library_path(folder)).reason)
    library_path(folder).write_bytes(b"no library")
    assert "cannot be loaded" in str(_open(library_path(folder)).reason)


@pytest.mark.parametrize(
    "environment, reason",
    [
        ({"HALFTONE_NATIVE_BUILD": "0"}, "HALFTONE_NATIVE_BUILD=0"),
        ({"PATH": "", "CXX": ""}, "no C++ compiler"),
        ({"PATH": "", "CXX": "no-such-compiler -v"}, "no-such-compiler failed"),
        ({"PATH": "", "CXX": "c++ 'unclosed"}, "$CXX cannot be read"),
    ],
)
def test_without_a_compiler_there_is_a_reason_and_no_old_library(folder, environment, reason):
    library_path(folder).write_bytes(b"from before")
    assert reason in str(build(folder, environment))
    assert not library_path(folder).exists()


@needs_compiler
def test_what_the_compiler_says_is_told(folder):
    (folder / "src" / "minimal.cpp").write_text("int main() { return surprise; }")
    assert "surprise" in str(build(folder)) and not library_path(folder).exists()


@pytest.mark.parametrize("said", ["echo >&2", "printf '\\377\\n' >&2", "true"])
def test_a_compiler_that_says_nothing_readable_is_told(folder, tmp_path, said):
    """A newline alone, and bytes that are no text."""
    script = tmp_path / "compiler"
    script.write_text(f"#!/bin/sh\n{said}\nexit 3\n")
    script.chmod(0o755)
    assert "compiler failed: " in str(build(folder, {"CXX": str(script)}))


def test_a_folder_that_cannot_be_written_to_is_told(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    environment = {"CXX": "c++"}
    assert "cannot be written to" in str(build(folder / "none", environment))
    library_path(folder).write_bytes(b"from before")
    monkeypatch.setattr(build_module.tempfile, "TemporaryDirectory", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    assert "cannot be written to: [Errno 13] Permission denied" in str(build(folder, environment))


def test_named_compiler_may_have_arguments():
    assert compiler({"CXX": "ccache g++", "PATH": ""}) == ["ccache", "g++"]


def test_digest_changes_with_sources_and_names(folder):
    digests = {source_digest(folder)}
    (folder / "src" / "minimal.cpp").rename(folder / "src" / "other.cpp")
    digests.add(source_digest(folder))
    (folder / "src" / "other.h").write_text("")
    digests.add(source_digest(folder))
    assert len(digests) == 3


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_library_is_built_from_these_sources():
    """If this fails, a source was changed after the build: python -m halftone.native."""
    loaded = library()
    loaded.halftone_source_digest.restype = ctypes.c_char_p
    assert loaded.halftone_source_digest().decode() == source_digest()


def test_switched_off_it_is_not_used():
    code = "from halftone.native import library, unavailable; print(library(), unavailable())"
    environment = {**dict(os.environ), "HALFTONE_NATIVE": "0"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["None", "HALFTONE_NATIVE=0"]


@needs_compiler
def test_the_package_s_own_sources_build(tmp_path):
    shutil.copytree(FOLDER / "src", tmp_path / "src")
    assert build(tmp_path) is None
    assert _open(library_path(tmp_path)).reason is None
