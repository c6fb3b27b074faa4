"""The pushes: what each repository has, and what a hook is owed that came after the head."""

from collections.abc import Callable

import pytest
from support.merges import Sandbox

from mergd.daemon.status import owed_news
from mergd.daemon.telling import tell_hooks
from mergd.state.errors import Busy
from mergd.state.history import History
from mergd.state.records import News, Version


def test_each_repository_has_its_own(new_merge: Callable[..., Sandbox]) -> None:
    merge = new_merge()
    for seed in (1, 2):
        merge.drop(f"seed-{seed}", seed)
    merge.fold_all()
    with History(merge.store.database, write=True) as history:
        history.move_head(1, "a test", "rollback", [])
        for move, version, repository in ((1, 1, "a/a"), (2, 2, "a/a"), (3, 1, "a/a"), (3, 1, "b/b")):
            history.pushes.add(move, version, repository, f"{repository} {move}")
        newest, last = history.pushes.last(), history.pushes.last("a/a")
        assert newest is not None
        assert last is not None
        assert (newest.commit, last.commit, history.pushes.last("c/c")) == ("b/b 3", "a/a 3", None)
        assert history.pushes.commits(1) == {"a/a": "a/a 1", "b/b": "b/b 3"}
        first = history.pushes.first_of(1, "a/a")
        assert first is not None
        assert first.move == 1
        assert history.pushes.of_move(1, "b/b") is None


def test_a_hook_that_comes_late_is_owed_the_newest_move_once(new_merge: Callable[..., Sandbox]) -> None:
    merge = new_merge()
    with History(merge.store.database, write=True) as history:
        history.owe("late")
        assert history.owed() == []
    for seed in (1, 2):
        merge.drop(f"seed-{seed}", seed)
    merge.fold_all()
    with History(merge.store.database, write=True) as history:
        history.owe("late")
        history.owe("late")
        assert [(hook, move.to_version) for hook, move in history.owed()] == [("late", 2)]
        history.told("late", 2)
        history.owe("late")
        assert history.owed() == []


class Deaf:
    """A hook that takes so many pieces of news, and no more."""

    def __init__(self, takes: int) -> None:
        self.takes, self.heard = takes, list[int]()

    def tell(self, news: News) -> None:
        if len(self.heard) == self.takes:
            raise Busy("later")
        self.heard.append(news.id)


def test_of_what_is_owed_no_more_is_read_than_can_be_told(
    new_merge: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge = new_merge()
    merge.drop("a", 1)
    merge.fold_all()
    with History(merge.store.database, write=True) as history:
        for _ in range(50):
            history.move_head(1, "a test", "rollback", ["deaf", "half", "well", "gone"])
        real, read = history.version, list[int]()

        def version(number: int) -> Version | None:
            read.append(number)
            return real(number)

        monkeypatch.setattr(history, "version", version)
        hooks = {"deaf": Deaf(0), "half": Deaf(3), "well": Deaf(99)}
        tell_hooks(hooks, owed_news(history, merge.store, hooks), history.told)
        assert [len(hook.heard) for hook in hooks.values()] == [0, 3, 50]
        assert hooks["well"].heard == sorted(hooks["well"].heard)
        assert len(read) == 1 + 4 + 50
        assert [len(history.owed(name)) for name in (*hooks, "gone")] == [50, 47, 0, 50]


def test_what_a_hook_is_owed_is_found_by_an_index_of_that_alone(new_merge: Callable[..., Sandbox]) -> None:
    with History(new_merge().store.database) as history:
        asked = list[str]()
        with history._db.tracer(lambda sql, _: asked.append(sql)):
            history.owed("one", 1)
        (query,) = (sql for sql in asked if "tellings" in sql)
        plan = " ".join(row[3] for row in history._db.execute(f"explain query plan {query}", ["one", 1]).fetchall())
    assert "tellings_owed" in plan
    assert "TEMP B-TREE" not in plan
