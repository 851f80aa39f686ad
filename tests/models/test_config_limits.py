"""Configurations with numbers that no model has: refused before a class is built from them."""

import json

import pytest

from dit_accel.models.config_limits import check_limits

SOURCES = {"transformer": "config.json", "scheduler": "scheduler_config.json"}


@pytest.mark.parametrize(
    ("part", "content", "message"),
    [
        ("transformer", {"num_layers": 10**9}, r"num_layers is 1e\+09 in .*; accepted: at most 1"),
        ("transformer", {"layers_per_block": [1, 10**9]}, "layers_per_block is 1e"),
        ("transformer", {"text_config": {"num_hidden_layers": 10**400}}, "is over 300 digits"),
        ("transformer", {"rope_max_seq_len": 10**9}, "rope_max_seq_len is 1e"),
        ("scheduler", {"num_train_timesteps": 10**9}, r"num_train_timesteps is 1e\+09"),
    ],
)
def test_a_number_that_fills_the_memory_is_refused_by_file_and_field(
    tmp_path, part, content, message
):
    source = tmp_path / part / SOURCES[part]
    source.parent.mkdir()
    source.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as refused:
        check_limits(tmp_path)
    assert str(source) in str(refused.value)


def test_a_tokenizer_has_no_limit_and_usual_numbers_are_accepted(tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer_config.json").write_text('{"model_max_length": 1e30}')
    (tmp_path / "text_encoder").mkdir()
    usual = {"num_layers": 60, "max_position_embeddings": 2**20, "rope_theta": 10**7}
    (tmp_path / "text_encoder/config.json").write_text(json.dumps(usual))
    check_limits(tmp_path)
