"""How a bad input comes about: each function makes one in a case's folder `at`, and gives the
arguments of train_dpo.py.

In `at` lie a good `config.yaml`, which trains on rows/good.jsonl, and the model that it names, `at
/ "model"`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

ROWS = Path(__file__).with_name("rows")
GOOD = {
    "prompt": "Why is the sky blue?",
    "chosen": "Air scatters blue light more than red.",
    "rejected": "Because it is.",
}
Make = Callable[[Path], list[str]]


def given(*overrides: str) -> Make:
    """The good config with overrides, in which `AT` is the case's folder."""
    return lambda at: [
        str(at / "config.yaml"),
        *(text.replace("AT", str(at)) for text in overrides),
    ]


def config(text: str | bytes) -> Make:
    """A config file with these contents alone."""

    def make(at: Path) -> list[str]:
        (at / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return given()(at)

    return make


def config_and(lines: str) -> Make:
    """The good config file with more lines at its end."""
    return lambda at: config((at / "config.yaml").read_text() + lines)(at)


def file(name: str, content: str | bytes, *overrides: str) -> Make:
    """A file in the case's folder, by default one to train on."""

    def make(at: Path) -> list[str]:
        path = at / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return given(*overrides or [f"data.train=[AT/{name}]"])(at)

    return make


def model(change: Callable[[Path], object]) -> Make:
    """The good model's folder, changed."""

    def make(at: Path) -> list[str]:
        change(at / "model")
        return given()(at)

    return make


def model_file(name: str, content: str | bytes) -> Make:
    return model(
        lambda folder: (folder / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    )


def edited(name: str, **values: object) -> Make:
    """A JSON file of the model's folder with some values replaced; None removes the key."""

    def change(folder: Path) -> None:
        tree = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(
            json.dumps({key: value for key, value in tree.items() if value is not None})
        )

    return model(change)


def other_model(**values: object) -> Make:
    """A config.json of another kind of model."""
    return model_file("config.json", json.dumps(values))


def weights(change: Callable[[dict[str, object]], object]) -> Make:
    """Other tensors in model.safetensors: `change` is given the dict."""

    def rewrite(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return model(rewrite)


def sharded(folder: Path) -> None:
    """Weights in two files with an index, of which the second did not come."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    save_file(
        {name: tensors[name] for name in names[:5]}, folder / "model-00001-of-00002.safetensors"
    )
    files = {
        name: f"model-0000{1 if name in names[:5] else 2}-of-00002.safetensors" for name in names
    }
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )


def parquet(name: str, columns: dict[str, list[object]], cut: int | None = None) -> Make:
    def make(at: Path) -> list[str]:
        import pyarrow as pa
        from pyarrow import parquet as pq

        pq.write_table(pa.table(columns), at / name)
        return file(name, (at / name).read_bytes()[:cut])(at)

    return make


def parquet_of_bytes(at: Path) -> list[str]:
    """A column of text whose bytes are no text, as some writers leave them."""
    import pyarrow as pa
    from pyarrow import parquet as pq

    prompt = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\0\0\0\0\2\0\0\0"), pa.py_buffer(b"\xff\xfe")
    )
    pq.write_table(
        pa.table({"prompt": prompt, "chosen": ["a"], "rejected": ["b"]}), at / "bytes.parquet"
    )
    return given("data.train=[AT/bytes.parquet]")(at)


def saved_dataset(
    damage: Callable[[Path], object], spec: str = "AT/saved", splits: tuple[str, ...] = ()
) -> Make:
    """What `datasets` saves, damaged."""

    def make(at: Path) -> list[str]:
        from datasets import Dataset, DatasetDict, disable_progress_bars

        disable_progress_bars()
        rows = Dataset.from_list([GOOD])
        (DatasetDict(dict.fromkeys(splits, rows)) if splits else rows).save_to_disk(at / "saved")
        damage(at / "saved")
        return given(f"data.train=[{spec}]")(at)

    return make


def folder_of(*names: str, spec: str = "AT/set") -> Make:
    """A folder with good files of these names; bytes that are no UTF-8 are written as os.fsdecode
    does."""

    def make(at: Path) -> list[str]:
        (at / "set").mkdir()
        for name in names:
            (at / "set" / name).write_text(json.dumps(GOOD) + "\n")
        return given(f"data.train=[{spec}]")(at)

    return make


def used_run(at: Path) -> list[str]:
    (at / "used").mkdir()
    (at / "used" / "metrics.jsonl").write_text('{"step": 0}\n')
    return given("run.dir=AT/used", "run.resume=never")(at)


def directory_as_config(at: Path) -> list[str]:
    (at / "config.yaml").unlink()
    (at / "config.yaml").mkdir()
    return given()(at)


def deepspeed(content: str | bytes) -> Make:
    return file("ds.json", content, "hardware.deepspeed=AT/ds.json")
