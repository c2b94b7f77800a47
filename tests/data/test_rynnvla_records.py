"""Records of RynnVLA-002: what a YAML names, converted once into memory-mapped rows."""

import hashlib
import json
import os
import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
from rynnvla_data import write_records

from vlatrack.data.formats.rynnvla.lists import read_entries
from vlatrack.data.formats.rynnvla.records import Records
from vlatrack.data.row_writer import Row, write_rows
from vlatrack.data.rows import TokenRows
from vlatrack.errors import DataError

GENERATOR = np.random.default_rng(0)


def _some_rows(count: int = 5, *, most: int = 65536) -> list[tuple[list[int], list[int]]]:
    rows = []
    for number in range(count):
        ids = GENERATOR.integers(0, most, 30 + number).tolist()
        rows.append((ids, [*[-100] * 20, *ids[20:]]))
    return rows


def _is_row(rows: TokenRows, number: int, expected: tuple[list[int], list[int]]) -> bool:
    found = rows.row(number)
    return (found.input_ids.tolist(), found.labels.tolist()) == expected and found.input_ids.dtype == np.int64


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """vlatrack is not started where the reference's scripts are."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")


def test_rows_are_those_of_the_pickles(tmp_path: Path) -> None:
    written = _some_rows(1100)  # more than are stored together
    rows = Records(write_records(tmp_path / "data", written)).rows(tmp_path / "rows")
    assert len(rows) == 1100
    assert rows.lengths.tolist() == [len(ids) for ids, _ in written]
    assert rows.lengths.dtype == np.int32
    assert all(_is_row(rows, number, row) for number, row in enumerate(written))
    assert rows.first_answer_ids.tolist() == [ids[20] for ids, _ in written]
    some = [1099, 3, 1024, 3]
    assert [row.input_ids.tolist() for row in rows.batch(np.array(some))] == [written[number][0] for number in some]
    assert rows.file.stat().st_size < sum(2 * len(ids) + 30 for ids, _ in written), "16 bits an id"


@pytest.mark.parametrize(
    "labels",
    [
        pytest.param([-100, 5, -100, 7], id="two spans"),
        pytest.param([-100, -100, 9, 7], id="another id than the row has"),
        pytest.param([-100, -100, -100, -100], id="none"),
        pytest.param([4, 5, 6, 7], id="all"),
    ],
)
def test_labels_that_are_no_span_of_the_ids_are_kept_as_they_are(labels: list[int], tmp_path: Path) -> None:
    written = [([4, 5, 6, 7], [-100, -100, 6, 7]), ([4, 5, 6, 7], labels), ([8, 9], [-100, 9])]
    rows = Records(write_records(tmp_path / "data", written)).rows(tmp_path / "rows")
    assert all(_is_row(rows, number, row) for number, row in enumerate(written))
    assert rows.first_answer_ids[1] == next((label for label in labels if label >= 0), -1)


def test_ids_of_large_vocabularies_are_kept_as_they_are(tmp_path: Path) -> None:
    written = [*_some_rows(1024), *_some_rows(3, most=160_000), ([7, 170_000], [-100, 170_000])]
    rows = Records(write_records(tmp_path / "data", written)).rows(tmp_path / "rows")
    assert all(_is_row(rows, number, row) for number, row in enumerate(written))


def test_rows_are_converted_once_and_again_when_a_record_changes(tmp_path: Path) -> None:
    config = write_records(tmp_path / "data", written := _some_rows())
    done: list[tuple[int, int]] = []
    first = Records(config).rows(tmp_path / "rows", lambda *progress: done.append(progress))
    assert done == [(number, 5) for number in range(1, 6)]
    again = Records(config).rows(tmp_path / "rows", lambda *_: pytest.fail("they are converted already"))
    assert again.file == first.file
    ids, labels = written[3]
    ids[0] += 1
    record = tmp_path / "data/processed_data/tokens/rows/files/3.pkl"
    record.write_bytes(pickle.dumps({"token": ids, "label": labels}))
    changed = Records(config).rows(tmp_path / "rows")
    assert _is_row(changed, 3, (ids, labels))
    assert changed.fingerprint() != first.fingerprint()


def test_the_fingerprint_is_that_of_the_rows_wherever_they_lie(tmp_path: Path) -> None:
    written = _some_rows()
    here = Records(write_records(tmp_path / "here", written)).rows(tmp_path / "rows")
    there = Records(write_records(tmp_path / "there", written, name="others")).rows(tmp_path / "rows")
    swapped = Records(write_records(tmp_path / "swapped", written[::-1])).rows(tmp_path / "rows")
    assert here.fingerprint() == there.fingerprint() != swapped.fingerprint()


def test_a_yaml_names_several_lists_with_their_shares_and_types(tmp_path: Path) -> None:
    written = _some_rows(7)
    write_records(tmp_path / "data", written[:4], name="a")
    config = write_records(tmp_path / "data", written[4:], name="b")
    lists = tmp_path / "data/processed_data/concate_tokens"
    listed = json.loads((lists / "b.json").read_text())
    (lists / "b.jsonl").write_text("\n\n".join(map(json.dumps, listed)))
    config.write_text(
        "META:\n- {path: '../processed_data/concate_tokens/a.json', ratio: 0.5}\n"
        "- {path: '../processed_data/concate_tokens/b.jsonl', type: world}\n"
    )
    rows = Records(config).rows(tmp_path / "rows")
    assert all(_is_row(rows, number, row) for number, row in enumerate(written))
    assert rows.about["lists"] == [
        {"start": 0, "stop": 4, "ratio": 0.5, "type": "default"},
        {"start": 4, "stop": 7, "ratio": 1.0, "type": "world"},
    ]
    assert Records(config).place(5) == f"{tmp_path}/data/processed_data/tokens/b/files/1.pkl"


def test_an_entry_of_a_yaml_has_no_other_keys_than_those_that_are_followed(tmp_path: Path) -> None:
    config = write_records(tmp_path / "data", _some_rows())
    config.write_text("META:\n- {path: '../processed_data/concate_tokens/rows.json', weight: 2}\n")
    with pytest.raises(DataError, match=r"rows\.yaml: META\.0: unknown key 'weight' \(known here: path, "):
        Records(config)


def test_entries_that_hold_their_row_need_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps([{"token": [1, 2], "label": [-100, 2], "id": 0}]))
    assert _is_row(Records(tmp_path / "rows.json").rows(tmp_path / "rows"), 0, ([1, 2], [-100, 2]))


class TestPaths:
    """`../processed_data/…` means a folder beside the one where the reference's scripts are started."""

    def test_they_are_found_from_where_the_scripts_are_started(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = write_records(tmp_path / "data", _some_rows())
        moved = config.rename(tmp_path / "elsewhere.yaml")
        with pytest.raises(DataError, match=r"META\.0: no file '\.\./processed_data/concate_tokens/rows\.json'"):
            Records(moved)
        (tmp_path / "data/exps").mkdir()
        monkeypatch.chdir(tmp_path / "data/exps")
        assert len(Records(moved).rows(tmp_path / "rows")) == 5

    def test_moved_data_is_found_by_the_name_of_its_root(self, tmp_path: Path) -> None:
        config = write_records(tmp_path / "data", _some_rows())
        lists = tmp_path / "data/processed_data/concate_tokens/rows.json"
        lists.write_text(lists.read_text().replace("../", "/mnt/of/somebody/"))
        (tmp_path / "data/processed_data").rename(tmp_path / "moved")
        with pytest.raises(DataError, match="is not below"):
            Records(tmp_path / "moved/concate_tokens/rows.json").rows(tmp_path / "rows")
        (tmp_path / "disk").mkdir()
        (tmp_path / "moved").rename(tmp_path / "disk/processed_data")
        assert len(Records(config, root=tmp_path / "disk/processed_data").rows(tmp_path / "rows")) == 5

    @pytest.mark.parametrize(
        "path",
        [
            "/etc/hostname",
            "../../../../../../../etc/hostname",
            "x/../../../secret.pkl",
            "..",
            "",
            "a\0b",
            5,
            None,
            "nul/",
        ],
    )
    def test_a_list_reaches_nothing_outside(self, path: object, tmp_path: Path) -> None:
        config = write_records(tmp_path / "data", _some_rows(1))
        (tmp_path / "data/secret.pkl").write_bytes(pickle.dumps({"token": [1], "label": [1]}))
        lists = tmp_path / "data/processed_data/concate_tokens/rows.json"
        lists.write_text(json.dumps([{"file": path}]))
        with pytest.raises(DataError, match=r"rows\.json: entry 0: .* is (not below|no path)"):
            Records(config).rows(tmp_path / "rows")


def _break(content: object, tmp_path: Path) -> Path:
    config = write_records(tmp_path / "data", _some_rows())
    (tmp_path / "data/processed_data/tokens/rows/files/2.pkl").write_bytes(
        content if isinstance(content, bytes) else pickle.dumps(content)
    )
    return config


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([1, 2], "a list, no dict with token and label"),
        ({"token": [1, 2]}, "its label is no list of ids"),
        ({"token": "12", "label": [1, 2]}, "its token is no list of ids"),
        ({"token": [1, [2]], "label": [1, 2]}, "its token is no list of ids"),
        ({"token": [1, 2.0], "label": [1, 2]}, "its token is no list of ids"),
        ({"token": [1, None], "label": [1, 2]}, "its token is no list of ids"),
        ({"token": [1, 2], "label": [2]}, "2 ids and 1 labels"),
        ({"token": [], "label": []}, "0 ids and 0 labels"),
        ({"token": [1, 2], "label": [-100, 2]}, r"2 ids, but .*rows\.json: entry 2 says 32"),
        ({"token": np.arange(3), "label": [1, 2, 3]}, "refused, it asks for the Python object numpy"),
        (b"", "not a pickle"),
        (pickle.dumps({"token": [1] * 32, "label": [1] * 32})[:-20], "damaged pickle|cut off"),
    ],
)
def test_what_is_no_record_is_one_line_with_its_file(content: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"2\.pkl: {reason}") as error:
        Records(_break(content, tmp_path)).rows(tmp_path / "rows")
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "rows").iterdir()), "nothing half-written is left"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("META: []", "no META with a list"),
        ("META:\n- path: x.pth", "neither .json nor .jsonl"),
        ("META:\n- {ratio: 1}", r"META\.0 has no path"),
        ("META:\n- {path: ../processed_data/concate_tokens/rows.json, ratio: 1.5}", "ratio is 1.5"),
        ("META:\n- {path: ../processed_data/concate_tokens/rows.json, ratio: .nan}", "ratio is nan"),
        ("META:\n  split: all\n  raw_data_dir: '../x'", "use kind: libero_hdf5"),
        ("META: [}", "not YAML"),
        ("!!python/object/apply:os.system ['touch x']", "not YAML"),
    ],
)
def test_what_is_no_list_of_records_is_one_line(text: str, reason: str, tmp_path: Path) -> None:
    config = write_records(tmp_path / "data", _some_rows())
    config.write_text(text)
    with pytest.raises(DataError, match=reason) as error:
        Records(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1}', "no JSON array"),
        ("", "no JSON array"),
        ('[{"a": 1}', "cut off after entry 0"),
        ('[{"a": 1} {"a": 2}]', "neither comma nor end after entry 0"),
        ('[{"a": 1}, {"a": ', "entry 1 is not JSON"),
        ('[{"a": 1}, 5]', "entry 1 is no object"),
        ('[{"a": 1},]', "entry 1 is no object"),
        ('[{"a": ' + "[" * 100_000, "entry 0 is not JSON"),
        ('[{"a": ' + "9" * 10_000 + "}]", "entry 0 is not JSON"),
    ],
)
def test_a_damaged_list_is_one_line_with_the_place(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(DataError, match=rf"list\.json: {reason}"):
        list(read_entries(tmp_path / "list.json"))


@pytest.mark.parametrize("indent", [None, 2])
def test_a_long_list_is_read_entry_by_entry(indent: int | None, tmp_path: Path) -> None:
    entries = [{"file": f"{number}/" + 'ä[]{},"\\' * 50, "len": number} for number in range(12_000)]
    (tmp_path / "list.json").write_text(json.dumps(entries, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert (tmp_path / "list.json").stat().st_size > 4 << 20, "several pieces"
    assert [entry for _, entry in read_entries(tmp_path / "list.json")] == entries


def _row(size: int = 40) -> Row:
    ids = GENERATOR.integers(0, 1000, size).astype(np.int32)
    return Row(ids, np.where(np.arange(size) < 20, -100, ids).astype(np.int32))


def test_damage_of_the_stored_rows_is_found_and_they_are_converted_again(tmp_path: Path) -> None:
    config = write_records(tmp_path / "data", written := _some_rows())
    file = Records(config).rows(tmp_path / "rows").file
    whole = file.read_bytes()
    damaged = {
        "a bit": bytes([*whole[:400], whole[400] ^ 4, *whole[401:]]),
        "cut off": whole[:-50],
        "zeroed": bytes(len(whole)),
        "empty": b"",
        "foreign": b"ARROW1" * 100,
        "its end cut off": whole[:-1],
    }
    for what, content in damaged.items():
        file.write_bytes(content)
        with pytest.raises(DataError, match="damaged"):
            TokenRows(file)
        rows = Records(config).rows(tmp_path / "rows")
        assert all(_is_row(rows, number, row) for number, row in enumerate(written)), what
    assert file.read_bytes() == whole


def test_records_that_change_while_they_are_read_are_an_error(tmp_path: Path) -> None:
    config = write_records(tmp_path / "data", _some_rows())
    record = tmp_path / "data/processed_data/tokens/rows/files/0.pkl"

    def change(done: int, total: int) -> None:
        if done == total:
            record.write_bytes(record.read_bytes())

    with pytest.raises(DataError, match="have changed while they were read"):
        Records(config).rows(tmp_path / "rows", change)
    assert not list((tmp_path / "rows").iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(DataError, match=r"rows cannot be written \(File too large\)"):
            write_rows(tmp_path / "x.arrow", (_row() for _ in range(5000)), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.glob("x.arrow*"))


def test_leftovers_of_killed_conversions_are_removed_when_nobody_writes_them(tmp_path: Path) -> None:
    old, young = tmp_path / "a.arrow.1.x.partial", tmp_path / "a.arrow.2.x.partial"
    for file in (old, young):
        file.write_bytes(b"x")
    os.utime(old, (0, 0))
    write_rows(tmp_path / "b.arrow", [_row()], {})
    assert not old.exists()
    assert young.exists()


def test_reading_all_rows_maps_the_file_and_copies_nothing(tmp_path: Path) -> None:
    written = [_row() for _ in range(3000)]
    write_rows(tmp_path / "x.arrow", written, {})
    total = hashlib.sha256()
    for piece in TokenRows(tmp_path / "x.arrow").pieces():
        assert piece.ids.dtype == np.uint16
        assert not piece.ids.flags.owndata
        assert piece.offsets[-1] == len(piece.ids)
        total.update(piece.ids.astype(np.int32).tobytes())
    assert total.digest() == hashlib.sha256(np.concatenate([row.ids for row in written]).tobytes()).digest()
