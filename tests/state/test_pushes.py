"""The pushes: what each repository has, and what a hook is owed that came after the head."""

from collections.abc import Callable

from support.merges import Sandbox

from mergd.state.history import History


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
