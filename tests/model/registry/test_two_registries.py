"""Two registries in one process, each with a model of the same name and version."""

import shutil
from pathlib import Path

import torch

from rwkvfusion.infra.tracking import using
from rwkvfusion.model.fusing.fuser import Fuser, FuserConfig
from rwkvfusion.model.network.network import NetworkConfig, RWKVFusion
from rwkvfusion.model.registry.find import resolve


def test_each_gives_its_own_weights(tmp_path: Path) -> None:
    with using(f"sqlite:///{tmp_path}/0.db") as client:
        client.search_registered_models()
    # To set up a database takes longer than all else here.
    shutil.copy(tmp_path / "0.db", tmp_path / "1.db")
    heads = []
    for seed in range(2):
        torch.manual_seed(seed)
        network = RWKVFusion(NetworkConfig(in_channels=(1, 1), out_channels=1, width=8))
        torch.nn.init.normal_(network.head.weight, std=0.05)
        config = FuserConfig.of(network, "vif", ("visible", "infrared"), luma_only=True)
        Fuser(network, config).save(tmp_path / f"model{seed}")
        heads.append(network.head.weight)
        with using(f"sqlite:///{tmp_path}/{seed}.db") as client:
            client.create_registered_model("tiny")
            client.create_model_version("tiny", str(tmp_path / f"model{seed}"))
    folders = [resolve("models:/tiny/1", f"sqlite:///{tmp_path}/{seed}.db").folder for seed in range(2)]
    assert folders[0] != folders[1]
    for folder, head in zip(folders, heads, strict=True):
        assert torch.equal(Fuser.load(folder).network.head.weight, head)
