"""The block pool against a slow model of it: what is found, what is free, and what a block holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from janus_attention.blocks import BlockPool, block_name
from janus_attention.sequence import Sampling, Sequence

SIZE = 3
SAMPLING = Sampling(temperature=0)


def make(number: int, tokens: list[int]) -> Sequence:
    return Sequence(id=number, prompt=len(tokens), tokens=list(tokens), sampling=SAMPLING)


@dataclass
class Model:
    """Whole prefixes instead of hashes, and a scan instead of every index."""

    count: int
    clock: int = 0
    holders: dict[int, set[int]] = field(default_factory=dict)
    prefix: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """What a block may be found by: all tokens up to its end."""
    unheld_since: dict[int, int] = field(default_factory=dict)

    def free(self) -> int:
        return self.count - sum(1 for who in self.holders.values() if who)

    def found(self, tokens: list[int]) -> int:
        blocks = 0
        while (blocks + 1) * SIZE < len(tokens) and tuple(
            tokens[: (blocks + 1) * SIZE]
        ) in self.prefix.values():
            blocks += 1
        return blocks

    def take(self, seq: Sequence, blocks: list[int], fresh: list[int]) -> None:
        """``seq`` was given these; the fresh ones may have been evicted, the longest unheld first."""
        spare = self.count - len([b for b in self.holders if self.holders[b]]) - len(self.unheld_since)
        for block in fresh:
            if block in self.prefix:
                assert spare == 0, "evicted while there were blocks without a name"
                assert block == min(self.unheld_since, key=self.unheld_since.__getitem__)
                del self.prefix[block], self.unheld_since[block]
            else:
                spare -= 1
        for block in blocks:
            self.holders.setdefault(block, set()).add(seq.id)
            self.unheld_since.pop(block, None)

    def full(self, seq: Sequence, before: int) -> None:
        for i in range(before // SIZE, seq.computed // SIZE):
            prefix = tuple(seq.tokens[: (i + 1) * SIZE])
            if seq.blocks[i] not in self.prefix and prefix not in self.prefix.values():
                self.prefix[seq.blocks[i]] = prefix

    def release(self, seq: Sequence, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.holders[block].discard(seq.id)
            if not self.holders[block] and block in self.prefix:
                self.clock += 1
                self.unheld_since[block] = self.clock


@settings(max_examples=100, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data(), count=st.integers(3, 14))
def test_pool_is_its_model(data: st.DataObject, count: int) -> None:
    pool, model = BlockPool(count, SIZE, caching=True, seed="m"), Model(count)
    alive: list[Sequence] = []
    holds: dict[int, tuple[int, ...]] = {}
    """Per (block): what was written to it last, as the tokens up to each block's end."""
    hits = 0
    for number in range(data.draw(st.integers(5, 40))):
        what = data.draw(st.sampled_from(["admit", "step", "step", "release"]))
        if what == "admit":
            # Few different tokens and lengths: prefixes meet often.
            seq = make(number, data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=4 * SIZE)))
            expected, free = model.found(seq.tokens), model.free()
            prefixes = [tuple(seq.tokens[: SIZE * (i + 1)]) for i in range(expected)]
            taken = [block for block, prefix in model.prefix.items() if prefix in prefixes]
            unheld = sum(1 for b in taken if not model.holders.get(b))
            need = pool.blocks_for(len(seq.tokens)) - expected
            ok = pool.admit(seq, len(seq.tokens))
            assert ok == (need <= free - unheld)
            if ok:
                assert seq.computed == expected * SIZE
                hits += seq.computed
                for i, block in enumerate(seq.blocks[:expected]):
                    # Hit for hit, what lies there is what the sequence would have written.
                    assert holds[block] == tuple(seq.tokens[: (i + 1) * SIZE])
                for block in seq.blocks[:expected]:
                    model.unheld_since.pop(block, None)
                    model.holders.setdefault(block, set()).add(seq.id)
                model.take(seq, seq.blocks[expected:], seq.blocks[expected:])
                alive.append(seq)
            else:
                assert not seq.blocks
        elif alive and what == "step":
            seq = data.draw(st.sampled_from(alive))
            if seq.pending == 0 or data.draw(st.booleans()):
                seq.tokens.append(data.draw(st.integers(0, 1)))
            before, had = seq.computed, len(seq.blocks)
            if pool.grow(seq, len(seq.tokens)):
                model.take(seq, seq.blocks[had:], seq.blocks[had:])
                seq.computed += data.draw(st.integers(1, seq.pending)) if seq.pending else 0
                for position in range(before, seq.computed):
                    block = seq.blocks[position // SIZE]
                    assert model.holders[block] == {seq.id}, "wrote to a block that another holds"
                    assert block not in model.prefix, "wrote to a block that others may find"
                    holds[block] = tuple(seq.tokens[: position + 1])
                pool.commit(seq, before)
                model.full(seq, before)
        elif alive:
            seq = alive.pop(data.draw(st.integers(0, len(alive) - 1)))
            blocks = list(seq.blocks)
            pool.release(seq)
            model.release(seq, blocks)
            assert not seq.blocks and not seq.computed
        assert pool.free == model.free()
        assert pool.cached == len(model.unheld_since)
    assert pool.hit_tokens == hits
    for seq in alive:
        pool.release(seq)
    assert pool.free == count


def test_names_depend_on_all_that_came_before_and_on_the_seed() -> None:
    seeds = [b"a" * 16, b"b" * 16]
    names = {block_name(block_name(seed, [first, 2]), [3, 4]) for seed in seeds for first in (1, 9)}
    assert len(names) == 4
    assert block_name(seeds[0], [1, 2]) == block_name(seeds[0], [1, 2])
    assert block_name(seeds[0], [1, 2]) != block_name(seeds[0], [2, 1])


def test_without_caching_nothing_is_found() -> None:
    pool = BlockPool(8, SIZE)
    for number in range(2):
        seq = make(number, [1] * 9)
        assert pool.admit(seq, 9) and seq.computed == 0
        seq.computed = 9
        pool.commit(seq, 0)
        pool.release(seq)
    assert (pool.hit_tokens, pool.lookup_tokens, pool.cached) == (0, 0, 0)


def test_a_whole_prompt_in_the_cache_leaves_its_last_token_to_compute() -> None:
    pool = BlockPool(8, SIZE, caching=True)
    first, second = make(1, [4] * 6), make(2, [4] * 6)
    pool.admit(first, 6)
    first.computed = 6
    pool.commit(first, 0)
    pool.admit(second, 6)
    assert second.computed == 3 and second.pending == 3
    assert second.blocks[0] == first.blocks[0] and second.blocks[1] != first.blocks[1]
