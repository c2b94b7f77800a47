from vlatrack.runner.directory import append_epoch, drop_epochs_from


def test_a_resumed_run_drops_the_epochs_it_repeats_and_a_torn_line(tmp_path) -> None:
    file = tmp_path / "log_train.txt"
    for epoch in range(4):
        append_epoch(file, {"train_closs": 1.5, "epoch": epoch})
    whole = file.read_text().splitlines(keepends=True)
    with file.open("a") as stream:
        stream.write('{"train_closs": 1.')
    drop_epochs_from(file, 2)
    assert file.read_text() == "".join(whole[:2])
    drop_epochs_from(tmp_path / "log_eval_ood.txt", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["log_train.txt"]
