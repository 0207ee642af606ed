"""The shipped presets make the data that they always made, token for token.

The hashes are those of commit 053fb93, before environments were named in configurations:
`apr data generate --config NAME train=24 validation=6 test=6`.
"""

from pathlib import Path

import pytest

from apr.config import DataConfig
from apr.data.card import content_hashes
from apr.data.generate import generate
from apr.presets import load, preset

HASHES = {
    ("tiny_cpu", "compact"): "394317e706314b21ce370d8acb77064ebae3b4f328b3e5c6573f38f547a9d60e",
    ("tiny_cpu", "paper"): "e9d917f95637d6fa792850d0a11e3393e113fb782ea5d1e076de8e55e1bb608c",
    ("tiny_cpu_conditioned", "compact"): "20d48a2bc23c12d907c55f1b232807bdda01b20e802b2afe9d1d22dd77751b0c",
    ("tiny_cpu_conditioned", "paper"): "a0ad74a703e7ac5e56bdf6cd8666fb313ac266a529abfb4718aaeb09daae845a",
    ("study", "compact"): "5392470c361aeced8a897b1355d5632cd5a132cc54becd550c564aba32864906",
    ("study_nested", "compact"): "8699267d436bf001f305bc25b7cb41e7a833c5633bf9f23547de76c13e31fae5",
    ("paper", "compact"): "7a419e6991ffc51ac0c92e03aa819c139c7ed17f2491bece12b588d9aaa85c55",
    ("paper", "paper"): "a0ea1074c536a35f43fcca30b2a0ccc89e81184c61c040df567d5cab556adda9",
    ("paper_controls", "compact"): "2291e64a8300c0f9a6f8bd8f810dc638a14b95a3dc72b8663980d6ab89a7fa01",
    ("paper_small", "compact"): "b55ec767af919d124540e1ec851979992171e73def7d848af6b847b4459f8a5e",
}


@pytest.mark.parametrize(("name", "speller"), HASHES)
def test_a_preset_makes_the_data_that_it_always_made(name: str, speller: str, tmp_path: Path) -> None:
    changes = ["train=24", "validation=6", "test=6", "workers=1", f"speller={speller}", f"out={tmp_path / 'data'}"]
    config = load(DataConfig, [preset("data", name)], changes)
    generate(config)
    assert content_hashes(config.out, config.solvers)["all"] == HASHES[name, speller]
