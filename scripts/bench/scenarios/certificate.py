"""A certificate for a server under measurement."""

import subprocess
from pathlib import Path

from scenarios.base import MeasureError


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Makes a certificate that is signed by itself; returns its file and that of its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-subj", "/CN=bench", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        raise MeasureError(f"openssl made no certificate: {error}") from error
    return certificate, key
