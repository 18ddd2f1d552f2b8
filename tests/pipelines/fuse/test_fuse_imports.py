"""What `fuse` of a local model imports: asked for one picture, it should not wait for what that does not need."""

import json
import subprocess
import sys
from pathlib import Path

from made import scene

from rwkvfusion.infra.pictures.encode import encode_png
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion

PROGRAM = """
import json, sys
from rwkvfusion.pipelines.cli import main
try:
    main()
finally:
    print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
NOT_NEEDED = {
    "boto3", "botocore", "cv2", "h5py", "mlflow", "pandas", "rasterio", "ray", "s3fs", "scipy", "skimage", "tifffile",
    "transformers", "webdataset",
}  # fmt: skip


def test_a_pair_of_plain_pictures_needs_torch_and_little_else(tmp_path: Path) -> None:
    network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8))
    Fuser(network, FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True)).save(tmp_path / "model")
    for name, channels in (("a.png", 3), ("b.png", 1)):
        (tmp_path / name).write_bytes(encode_png(scene(1, channels=channels)))
    words = ["fuse", "--model", "model", "a.png", "b.png", "-o", "fused.png"]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (tmp_path / "fused.png").is_file(), done.stderr
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert "torch" in modules
    assert modules & NOT_NEEDED == set()
