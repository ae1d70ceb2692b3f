"""Tests of bloodjax/tuning/study.py."""

import sys

import pytest

from bloodjax.errors import UserError
from bloodjax.tuning import choice, integer, log_uniform

pytest.importorskip("optuna", reason="needs the extra [sweep]")

from bloodjax.tuning import study as study_lib
from bloodjax.tuning.study import COMPLETE, FAILED, PRUNED, RUNNING, Study

SPACE = {
    "rate": log_uniform(1e-4, 1e-2),
    "depth": integer(1, 4),
    "hidden": choice((), (32, 16)),
}
OWN = {"rate": 1e-3, "depth": 2, "hidden": ()}


@pytest.fixture
def url(tmp_path):
    return f"journal:///{tmp_path / 'sweep.log'}"


@pytest.fixture
def new(url):
    """Opens a study in a journal, which is faster than SQLite; the first call creates it."""

    def study(name=None, **options):
        return Study(url, name, SPACE, **{"larger_is_better": False, **options})

    return study


def run(study, n, value=lambda values: values["rate"]):
    for _ in range(n):
        number = study.ask()
        study.finish(number, COMPLETE, value(study.choose(number)))
    return [trial.values for trial in study.trials()]


def test_a_trial_from_its_start_to_its_end(new):
    study = new()
    assert (study.ask(), study.ask()) == (0, 1)
    assert study.choose(0, OWN) == OWN
    values = study.choose(1)
    assert values == study.choose(1) != OWN
    assert values["hidden"] in ((), (32, 16))
    study.report(1, {1: 0.5})
    study.report(1, {1: 7.0, 2: 0.25})
    study.note(1, deaths=1)
    study.finish(1, COMPLETE, 0.25)
    study.finish(1, FAILED)  # it has ended
    first, second = study.trials()
    assert (first.state, first.value, first.seconds) == (RUNNING, None, None)
    assert (second.state, second.value, second.notes) == (COMPLETE, 0.25, {"deaths": 1})
    assert second.epochs == {1: 0.5, 2: 0.25}
    assert study.best().number == 1


def test_values_follow_from_the_seed_and_the_trials_before(tmp_path, new):
    other = f"journal:///{tmp_path / 'other.log'}"
    study = new(seed=3)
    tried = run(study, 7)
    tried = run(new(study.name, seed=3), 5)  # another process goes on
    assert tried == run(Study(other, None, SPACE, larger_is_better=False, seed=3), 12)
    assert tried != run(Study(other, None, SPACE, larger_is_better=False, seed=4), 12)


def test_a_trial_that_was_half_chosen_gets_the_same_values(new, monkeypatch):
    study, reference = new(), new()
    number = study.ask(), reference.ask()
    expected = reference.choose(number[1])
    suggest, calls = study_lib._suggest, []

    def die(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return suggest(*arguments)

    monkeypatch.setattr(study_lib, "_suggest", die)
    with pytest.raises(KeyboardInterrupt):
        study.choose(number[0])
    monkeypatch.setattr(study_lib, "_suggest", suggest)
    assert list(study.trials()[0].values) == ["rate"]
    assert new(study.name).choose(number[0]) == expected


def test_the_search_prefers_what_was_good(new):
    study = new()
    tried = run(study, 24)
    rates = [values["rate"] for values in tried]
    random, chosen = rates[: study_lib.RANDOM_TRIALS], rates[study_lib.RANDOM_TRIALS :]
    assert sorted(chosen)[len(chosen) // 2] < sorted(random)[len(random) // 2]


@pytest.mark.parametrize("larger", [False, True])
def test_a_trial_that_is_worse_than_the_median_is_hopeless(new, larger):
    study = new(larger_is_better=larger, epochs=4)
    for level in range(5):
        number = study.ask()
        study.choose(number)
        study.report(number, {epoch: float(level) for epoch in range(1, 5)})
        study.finish(number, COMPLETE, float(level))
    bad, good = (9.0, -9.0) if not larger else (-9.0, 9.0)
    for value, is_bad in ((bad, True), (good, False)):
        number = study.ask()
        study.choose(number)
        study.report(number, {1: value})
        assert study.is_hopeless(number) == is_bad
        study.finish(number, PRUNED if is_bad else COMPLETE, None if is_bad else value)
    assert [trial.state for trial in study.trials()[-2:]] == [PRUNED, COMPLETE]
    assert study.best().number == 6


def test_importance_finds_the_key_that_matters(new):
    study = new()
    run(study, 4)
    assert study.importances() == {}
    run(study, 12, lambda values: float(values["depth"]) + 0.01 * values["rate"])
    shares = study.importances(resamples=3)
    assert next(iter(shares)) == "depth"
    assert sum(entry["share"] for entry in shares.values()) == pytest.approx(1)
    assert shares["depth"]["low"] <= shares["depth"]["high"] <= 1
    assert "low" not in study.importances()["rate"]


def test_one_storage_has_the_studies_of_several_sweeps(new):
    first, second = new(), new()
    assert (first.name, second.name) == ("sweep-1", "sweep-2")
    first.ask()
    assert (len(first.trials()), len(second.trials())) == (1, 0)
    with pytest.raises(UserError, match="has no study sweep-9, which this sweep was started with"):
        new("sweep-9")


def test_sqlite_is_a_file_that_another_process_opens(tmp_path):
    url = f"sqlite:///{tmp_path / 'folder' / 'sweep.db'}"
    assert study_lib.default_folder(url) == tmp_path / "folder" / "sweep"
    study = Study(url, None, SPACE, larger_is_better=True, pruner="hyperband", epochs=9)
    number = study.ask()
    values = study.choose(number)
    again = Study(url, study.name, SPACE, larger_is_better=True)
    assert again.choose(number) == values
    again.report(number, {1: 0.5})
    study.report(number, {1: 0.5, 2: 0.75})
    assert study.trials()[0].epochs == {1: 0.5, 2: 0.75}
    assert not study.is_hopeless(number)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sweep.db", "--storage=sweep.db: expected sqlite:///FILE, journal:///FILE or the URL"),
        ("sqlite:////proc/none/sweep.db", "expected a file to write"),
        ("sqlite:///{folder}", "unable to open database file; expected a database"),
        ("sqlite:///{damaged}", "file is not a database; expected a database"),
        ("journal:///{damaged}", "expected a database for the trials"),
        ("nosql://host/name", "Can't load plugin: sqlalchemy.dialects:nosql; expected a database"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_one_line(tmp_path, url, message):
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database at all\n" * 100)
    url = url.format(folder=tmp_path, damaged=damaged)
    with pytest.raises(UserError) as error:
        Study(url, None, SPACE, larger_is_better=False)
    assert str(error.value).startswith(f"--storage={url}: ")
    assert message in str(error.value)


def test_a_driver_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(UserError, match="expected the database's Python driver to be installed"):
        Study("postgresql://me:secret@host/x", None, SPACE, larger_is_better=False)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:secret@host/name", "postgresql://me:***@host/name"),
        ("postgresql://me:se@cr/et@host:5432/name", "postgresql://me:***@host:5432/name"),
        ("me:secret@host/name", "me:***@host/name"),
        ("postgresql:/me:secret@host/name", "postgresql:/me:***@host/name"),
        ("postgresql://me@host:5432/name", "postgresql://me@host:5432/name"),
        (
            "postgresql://host/name?user=me&password=secret",
            "postgresql://host/name?user=me&password=***",
        ),
        ("sqlite:///sweep.db", "sqlite:///sweep.db"),
    ],
)
def test_a_password_is_not_shown(url, shown):
    assert study_lib.without_password(url) == shown


@pytest.mark.parametrize(
    "url", ["PostgreSQL://me:secret@host/name", "me:secret@host/name", "nosql://me:secret@host/x"]
)
def test_a_storage_that_is_not_known_is_named_without_its_password(url):
    with pytest.raises(UserError) as error:
        Study(url, None, SPACE, larger_is_better=False)
    assert str(error.value).startswith(f"--storage={url.replace('secret', '***')}: ")


def test_a_study_that_is_missing_is_named_without_the_password(monkeypatch):
    memory = study_lib.storages.InMemoryStorage()
    monkeypatch.setattr(study_lib, "_open", lambda _: memory)
    with pytest.raises(
        UserError, match=r"^--storage=postgresql://me:\*\*\*@host/x: has no study a"
    ):
        Study("postgresql://me:secret@host/x", "a", SPACE, larger_is_better=False)


def test_a_database_has_no_folder():
    assert study_lib.default_folder("postgresql://me:secret@host/name") is None


def test_a_file_without_a_suffix_has_no_folder_beside_it(tmp_path):
    assert study_lib.default_folder(f"journal:///{tmp_path}/sweep") is None


@pytest.mark.parametrize("name", ["what?", "50%20"])
def test_a_folder_whose_name_has_a_meaning_in_urls(tmp_path, name):
    file = tmp_path / name / "sweep.db"
    url = study_lib.sqlite_url(file)
    assert study_lib.default_folder(url) == tmp_path / name / "sweep"
    assert Study(url, None, SPACE, larger_is_better=True).ask() == 0
    assert file.is_file()
    assert list(tmp_path.iterdir()) == [file.parent]
