"""A checkpoint's headers say what it holds, and a broken one gets one clear sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from estimator import estimate
from estimator.case import Case
from estimator.checkpoint import Checkpoint, read_checkpoint
from estimator.errors import ModelError, UnsupportedError
from estimator.hub_cache import cached_snapshot

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 10,
}
PARAMETERS = 2 * 10 * 8 + 4 * 8 * 8 + 3 * 8 * 16 + 3 * 8


def write_file(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    # Only the header is there: the tensors are never read.
    path.write_bytes(len(text).to_bytes(8, "little") + text)


def file_of(header: bytes, missing: int = 0) -> bytes:
    return (len(header) + missing).to_bytes(8, "little") + header


def write_config(folder: Path, **fields: object) -> str:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **fields}))
    return str(folder)


def case_of(folder: Path, **fields: object) -> Case:
    return Case.from_dict({"model": write_config(folder, **fields), "sequence_length": 8})


def test_tensors_of_several_files_are_summed_by_dtype(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", {"x": ("BF16", [3, 4], 24), "y": ("F32", [5], 20)})
    write_file(tmp_path / "b.safetensors", {"z": ("BF16", [], 2)})
    write_file(tmp_path / "adapter_model.safetensors", {"w": ("F32", [9], 36)})
    assert read_checkpoint(tmp_path) == Checkpoint(3, 18, (("BF16", 26), ("F32", 20)))


def test_an_index_names_the_files(tmp_path: Path) -> None:
    write_file(tmp_path / "one.safetensors", {"x": ("F16", [4], 8)})
    write_file(tmp_path / "old.safetensors", {"y": ("F16", [4], 8)})
    index = {"weight_map": {"x": "one.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found.parameters == 4


def test_a_folder_without_weights_has_no_checkpoint(tmp_path: Path) -> None:
    assert read_checkpoint(tmp_path) is None
    assert estimate(case_of(tmp_path)).parameters.total == PARAMETERS


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {"x": torch.zeros(3, 5, dtype=torch.bfloat16), "y": torch.zeros(7)}
    safetensors.save_file(tensors, tmp_path / "model.safetensors")
    assert read_checkpoint(tmp_path) == Checkpoint(2, 22, (("BF16", 30), ("F32", 28)))


def test_an_estimate_says_what_its_checkpoint_holds(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_file(path, {"all": ("BF16", [PARAMETERS], 2 * PARAMETERS)})
    (line,) = (x for x in estimate(case_of(tmp_path)).assumptions if "checkpoint" in x)
    assert f"{PARAMETERS} parameters in {2 * PARAMETERS} B as stored (BF16" in line
    assert "follows" not in line
    write_file(path, {"all": ("BF16", [PARAMETERS + 1], 2 * PARAMETERS + 2)})
    (line,) = (x for x in estimate(case_of(tmp_path)).assumptions if "checkpoint" in x)
    assert f"but its configuration makes {PARAMETERS}" in line


def test_a_type_without_formulas_still_says_what_its_checkpoint_holds(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", {"x": ("F32", [100], 400)})
    with pytest.raises(UnsupportedError, match="holds 100 parameters in 400 B as stored"):
        estimate(case_of(tmp_path, model_type="no_such_type"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a safetensors file"),
        (b"PK\x03\x04aaaaaaaaaaaaaaaaaa", "is not a safetensors file"),
        (file_of(b"{}", missing=48), "is cut short"),
        (file_of(b"[]"), "must be an object"),
        (file_of(b"{x}"), "is not JSON"),
        (file_of(b'{"a":1}'), "no valid shape"),
        (file_of(b'{"a":{"shape":[-1],"data_offsets":[0,4],"dtype":"F"}}'), "no valid shape"),
    ],
)
def test_a_broken_file_gets_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=message) as caught:
        read_checkpoint(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_index_without_its_files_gets_one_sentence(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": "../gone.safetensors"}}))
    with pytest.raises(ModelError, match=r"gone.safetensors' is missing"):
        read_checkpoint(tmp_path)
    index.write_text("[]")
    with pytest.raises(ModelError, match="weight_map"):
        read_checkpoint(tmp_path)


def cached(home: Path, model: str, commit: str = "abc123") -> Path:
    repository = home / "hub" / f"models--{model.replace('/', '--')}"
    folder = repository / "snapshots" / commit
    folder.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return folder


def test_what_the_hubs_cache_holds_is_found_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    folder = cached(tmp_path, "someone/new-model")
    case = Case.from_dict({"model": "someone/new-model", "sequence_length": 8})
    with pytest.raises(ModelError, match="not in the catalogue"):
        estimate(case)
    write_config(folder)
    write_file(folder / "model.safetensors", {"all": ("BF16", [PARAMETERS], 2 * PARAMETERS)})
    report = estimate(case)
    assert report.parameters.total == PARAMETERS
    assert any(f"holds {PARAMETERS} parameters" in line for line in report.assumptions)


def test_the_hubs_cache_has_the_librarys_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = cached(tmp_path, "someone/new-model")
    write_config(folder)
    theirs = hub.snapshot_download(
        "someone/new-model", cache_dir=tmp_path / "hub", local_files_only=True
    )
    assert cached_snapshot("someone/new-model") == Path(theirs)


@pytest.mark.parametrize("name", ["plain", "../x", "a/../b", "a/b/c", "a b/c", ""])
def test_other_names_are_not_looked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    assert cached_snapshot(name) is None


def test_a_reference_does_not_lead_out_of_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    write_config(cached(tmp_path, "someone/new-model"))
    refs = tmp_path / "hub" / "models--someone--new-model" / "refs" / "main"
    refs.write_text("../../..")
    assert cached_snapshot("someone/new-model") is None
