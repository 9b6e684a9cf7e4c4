"""The log in memory: what it alone does."""

from pathlib import Path

from log.worlds import ids_of, world_of

from tricast.log.memory import MemoryLog


async def test_behind_an_old_event_of_a_quiet_topic_nothing_piles_up(tmp_path: Path) -> None:
    async with world_of("memory", tmp_path, history=5) as world:
        assert isinstance(world.log, MemoryLog)
        window = world.log._window
        ids = await world.append("quiet")
        most = 0
        for _ in range(400):
            ids += await world.append(*["hot"] * 10)
            most = max(most, len(window._order))
        assert most < 1100
        assert len(window._topics["hot"]._events) <= 11
        assert await world.ids("quiet", "hot") == [ids[0], *ids[-5:]]
        # What was taken out of the order is not dropped a second time.
        world.clock.seconds += 61
        assert await world.ids(">") == []
        assert world.kept() == (0, 0)
        assert ids_of(world.committed) == ids
