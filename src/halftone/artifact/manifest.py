"""halftone.json at the root of an artifact: its files' digests and the record of its calibration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from halftone.errors import ArtifactError
from halftone.files import file_sha256, parse_json, reason_of

MANIFEST = "halftone.json"
MANIFEST_VERSION = 1


def read_manifest(folder: Path) -> dict[str, Any]:
    """halftone.json of an artifact.

    Raises:
        ArtifactError: it is not JSON, of a newer version, or lacks a key.
    """
    path = folder / MANIFEST
    try:
        manifest = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({reason_of(error)}); copy the artifact again.") from error
    version = manifest.get("manifest_version") if isinstance(manifest, dict) else None
    if isinstance(version, int) and version > MANIFEST_VERSION:
        raise ArtifactError(
            f"{path} has version {version}, and this Halftone reads up to {MANIFEST_VERSION}; upgrade Halftone."
        )
    if version != MANIFEST_VERSION or not isinstance(manifest.get("files"), dict):
        raise ArtifactError(
            f"{path} is damaged: its manifest_version or file list is missing; copy the artifact again."
        )
    return dict(manifest)


def check_files(folder: Path) -> None:
    """Compares every file with the digest in halftone.json.

    Raises:
        ArtifactError: names the first file that is missing or not what was written.
    """
    for name, expected in sorted(read_manifest(folder)["files"].items()):
        path = folder / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; copy the artifact again.")
        if file_sha256(path) != expected:
            raise ArtifactError(
                f"{path} is not what was saved (truncated or changed); copy the artifact again or quantize anew."
            )
