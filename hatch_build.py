"""Builds the native library as part of an install or a wheel; without one the package installs all the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

_NATIVE = Path("src/halftone/native")


class NativeLibraryHook(BuildHookInterface[Any]):
    """Puts the library into the source tree, from where wheels and editable installs take it."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds; a wheel with the library is for this platform, but for any Python."""
        native = _build_module(Path(self.root))
        library = native.library_path()
        reason = native.build()
        if reason is not None:
            self.app.display_warning(
                f"Halftone is installed without its native library, and will be slower: {reason}. "
                "Once that is mended: python -m halftone.native"
            )
            return
        build_data["artifacts"].append(f"/{_NATIVE.as_posix()}/{library.name}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"


def _build_module(root: Path) -> ModuleType:
    """``halftone.native.build`` on its own: the package's dependencies are not there while it is built."""
    path = root / _NATIVE / "build.py"
    spec = importlib.util.spec_from_file_location("halftone_native_build", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _platform() -> str:
    """This machine's platform tag; not a manylinux one, which promises what nobody checked."""
    return next(tag.platform for tag in sys_tags() if not tag.platform.startswith(("manylinux", "musllinux")))
