"""Which idle connection is used, kept or closed."""

from __future__ import annotations

from fairlead.proxy.edge.pool import IdlePool


def test_the_youngest_is_used_first() -> None:
    pool: IdlePool[str] = IdlePool(3, 10.0)
    for name, now in (("a", 0.0), ("b", 1.0), ("c", 2.0)):
        assert pool.give_back(name, now) is None
    assert [pool.take(3.0), pool.take(3.0), pool.take(3.0), pool.take(3.0)] == ["c", "b", "a", None]


def test_too_many_close_the_oldest() -> None:
    pool: IdlePool[str] = IdlePool(2, 10.0)
    assert [pool.give_back(name, 0.0) for name in ("a", "b", "c")] == [None, None, "a"]
    assert len(pool) == 2


def test_too_old_is_not_used_and_expires() -> None:
    pool: IdlePool[str] = IdlePool(3, 10.0)
    pool.give_back("a", 0.0)
    pool.give_back("b", 5.0)
    assert pool.expire(10.0) == ["a"]
    assert pool.take(15.0) is None
    assert pool.expire(15.0) == ["b"]
    pool.give_back("c", 20.0)
    assert pool.clear() == ["c"]
    assert len(pool) == 0
