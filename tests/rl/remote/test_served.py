"""The folder through which servers get weights: only what a run wrote there is replaced or removed."""

import pytest

from nano3.config.errors import UserError
from nano3.model.hf.folder import load, save
from nano3.rl.remote.served import check_served, remove_served, write_served
from nano3.train.world import World


def test_weights_that_a_run_wrote_are_replaced_and_removed(model, tmp_path):
    folder = tmp_path / "served"
    check_served(folder)
    for _ in range(2):
        write_served(model, folder, World())
    check_served(folder)
    assert load(folder).cfg == model.cfg
    remove_served(folder, World())
    assert not folder.exists()


def test_a_users_model_is_neither_replaced_nor_removed(model, tmp_path):
    folder = tmp_path / "mine"
    save(model, folder)
    before = (folder / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(UserError, match=r"holds something else.*rollout\.server_weights"):
        write_served(model, folder, World())
    with pytest.raises(UserError, match="holds something else"):
        check_served(folder)
    remove_served(folder, World())
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
