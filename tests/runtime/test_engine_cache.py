"""Opened engines: kept while they are used and, for texts, within a budget; opened once for all threads."""

import threading
from types import SimpleNamespace

import pytest

from clipskip.engine_cache import EngineCache
from clipskip.engines.manifest import Identity, Role
from clipskip.engines.variants import Mix
from clipskip.errors import Closed, EngineIncompatible

STEP, DECODE = Role("step"), Role("decode")


def text(layers):
    return Role("text", layers)


class Library:
    """A backend and a store in one, whose engines have ten bytes each; `closed` are the roles of those closed."""

    target, precision, proof, variants = "onnx", "fp32", None, ("cpu", "")

    def __init__(self):
        self.openings, self.closed, self.fail, self.there = [], [], None, ["fp32", "fp16"]

    def find(self, role, target, precision, variant):
        self.variant = variant
        return role

    def manifest(self):
        return SimpleNamespace(
            artefacts=[SimpleNamespace(identity=(STEP, "onnx", each, ""), precision=each) for each in self.there]
        )

    def opened(self, role, opener):
        return opener(role, "path")

    def open(self, role, path):
        if self.fail:
            raise self.fail
        self.openings.append(role)
        return SimpleNamespace(role=role, nbytes=10, close=lambda: self.closed.append(role))


def cache_of(library, budget=30):
    return EngineCache(library, library, budget)


def use(cache, *roles):
    for role in roles:
        with cache.use(role) as engine:
            assert engine.role == role


def test_the_text_engine_unused_for_longest_goes_first():
    library = Library()
    cache = cache_of(library)
    use(cache, text(1), text(2), text(3), text(1), text(4))
    assert library.closed == [text(2)]
    assert cache.roles() == [text(3), text(1), text(4)]


def test_using_an_open_engine_keeps_it_from_being_the_next_to_go():
    library = Library()
    cache = cache_of(library, budget=20)
    use(cache, text(1), text(2), text(1), text(3))
    assert library.closed == [text(2)]


def test_step_and_decode_stay_open_whatever_the_budget():
    library = Library()
    cache = cache_of(library, budget=1)
    use(cache, STEP, DECODE, text(1), text(2))
    assert cache.roles() == [STEP, DECODE, text(2)]


def test_the_text_engine_used_last_stays_even_when_it_is_larger_than_the_budget():
    cache = cache_of(Library(), budget=1)
    use(cache, text(1))
    assert cache.roles() == [text(1)]


def test_an_engine_in_use_is_not_closed_until_its_user_is_done_e11():
    library = Library()
    cache = cache_of(library, budget=10)
    with cache.use(text(1)):
        use(cache, text(2), text(3))
        assert library.closed == [text(2)]
        cache.close()
        assert library.closed == [text(2), text(3)]
    assert library.closed == [text(2), text(3), text(1)]


def test_a_closed_cache_opens_nothing_and_may_be_closed_again():
    cache = cache_of(Library())
    cache.close()
    cache.close()
    with pytest.raises(Closed, match="closed"), cache.use(STEP):
        pass


def test_an_engine_is_opened_once_for_all_threads():
    library, start = Library(), threading.Barrier(8)
    cache = cache_of(library)

    def work():
        start.wait()
        use(cache, STEP)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert library.openings == [STEP]


def test_who_uses_and_gives_back_an_open_engine_does_not_wait_for_one_that_is_being_opened():
    library, began, free, done = Library(), threading.Event(), threading.Event(), threading.Event()
    cache, opening = cache_of(library), library.open
    use(cache, STEP)

    def slow(role, path):
        began.set()
        assert free.wait(60)
        return opening(role, path)

    library.open = slow
    threads = [threading.Thread(target=lambda: use(cache, text(1)))]
    threads += [threading.Thread(target=lambda: (use(cache, STEP), done.set()))]
    threads[0].start()
    began.wait(60)
    threads[1].start()
    try:
        assert done.wait(10)
    finally:
        free.set()
        for thread in threads:
            thread.join()
    assert cache.roles() == [STEP, text(1)]


def test_a_failed_opening_leaves_nothing_behind():
    library = Library()
    cache = cache_of(library)
    library.fail = OSError("no")
    with pytest.raises(OSError, match="no"), cache.use(STEP):
        pass
    assert cache.roles() == []


def test_the_other_precision_is_taken_where_only_that_is_there():
    library = Library()
    library.find = lambda role, target, precision, variant: precision
    for library.there, precision in (["fp32", "fp16"], "fp32"), (["fp16"], "fp16"), ([], "fp32"):
        assert cache_of(library).artefact(STEP) == precision


@pytest.mark.parametrize(("there", "variant"), [(["", "cpu"], "cpu"), ([""], ""), (["cuda", ""], ""), ([], "")])
def test_the_form_that_the_backend_likes_best_is_taken_of_those_that_are_there(there, variant):
    library = Library()
    identities = [Identity(STEP, "onnx", "fp32", each) for each in there]
    artefacts = [SimpleNamespace(identity=identity, precision="fp32") for identity in identities]
    library.manifest = lambda: SimpleNamespace(artefacts=artefacts)
    cache_of(library).artefact(STEP)
    assert library.variant == variant


def test_where_weights_cannot_change_the_hint_merges_into_a_store_of_its_own(tmp_path):
    library = Library()
    library.name, library.root = "fixed", tmp_path / "store"
    mix = Mix("0123456789abcdef", (), "--lora style.safetensors:0.5:0.5")
    with pytest.raises(EngineIncompatible, match="fixed cannot change weights for a LoRA") as caught:
        cache_of(library).artefact(STEP, mix)
    assert f"--out {tmp_path}/store-lora-0123456789ab --precision fp32 --lora style" in caught.value.hint
