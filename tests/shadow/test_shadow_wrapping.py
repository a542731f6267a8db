"""What a shadow does to its host: nothing that the host could notice, whatever goes wrong inside it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import types
from typing import Any

import pytest
import torch

from harness.shadow import NotJudged, Observation, Seen, wrapper
from tests.shadow import engine
from tests.shadow.support import counts

CHUNKS = "tests.shadow.engine:cu_seqlens_to_chunk_indices_offsets"
STARTS = torch.tensor([0, 5, 10], dtype=torch.int32)


def test_every_nth_call_is_compared_and_all_are_counted(made: Any) -> None:
    it = made(CHUNKS, "chunk_metadata", every=3)
    for _ in range(7):
        engine.cu_seqlens_to_chunk_indices_offsets(STARTS, 8)
    assert counts(it)["calls"] == 7
    assert counts(it)["compared"] == 3


def test_arguments_and_result_are_the_host_s_own(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given, result = [], (torch.tensor([0, 0, 1], dtype=torch.int32), torch.tensor([0, 5, 0], dtype=torch.int32))

    def host(cu_seqlens: torch.Tensor, chunk_size: int) -> Any:
        given.append(cu_seqlens)
        return result

    monkeypatch.setattr(engine, "host", host, raising=False)
    it = made("tests.shadow.engine:host")
    assert engine.host(STARTS, 8) is result  # type: ignore[attr-defined]
    assert given[0] is STARTS
    assert counts(it)["compared"] == 1
    assert counts(it)["mismatches"] == 0


def test_removed_is_gone_and_what_others_hold_passes_through(made: Any) -> None:
    original = engine.cu_seqlens_to_chunk_indices_offsets
    with made(CHUNKS) as it:
        held = engine.cu_seqlens_to_chunk_indices_offsets
        assert held is not original
    assert engine.cu_seqlens_to_chunk_indices_offsets is original
    assert len(held(STARTS, 8)) == 2
    assert counts(it)["calls"] == 0


def test_everywhere_finds_what_from_imports_left_behind(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = types.ModuleType("tests_shadow_other")
    other.f = original = engine.cu_seqlens_to_chunk_indices_offsets  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, other.__name__, other)
    with made(CHUNKS) as narrow:
        other.f(STARTS, 8)
    assert counts(narrow)["calls"] == 0
    with made(CHUNKS, everywhere=True) as wide:
        other.f(STARTS, 8)
        engine.cu_seqlens_to_chunk_indices_offsets(STARTS, 8)
    assert counts(wide)["calls"] == 2
    assert other.f is original


@pytest.mark.parametrize("path", ["Layer.scaled", "Layer.of_class", "Child.scaled", "Child.of_class"])
def test_methods_are_replaced_and_put_back(made: Any, path: str) -> None:
    owner, name = path.split(".")
    held = getattr(engine, owner)
    before = dict(vars(held))
    with made(f"tests.shadow.engine:{path}") as it:
        getattr(held, name)(STARTS, 8)
        getattr(held(), name)(STARTS, 8)
    assert counts(it)["compared"] == 2
    assert dict(vars(held)) == before


def test_attribute_of_an_object(made: Any) -> None:
    layer = types.SimpleNamespace(rule=engine.cu_seqlens_to_chunk_indices_offsets)
    with made((layer, "rule")) as it:
        layer.rule(STARTS, 8)
    assert counts(it)["compared"] == 1
    assert layer.rule is engine.cu_seqlens_to_chunk_indices_offsets


@pytest.mark.parametrize(
    ("arguments", "options", "said"),
    [
        (("nowhere.at_all:f",), {}, "cannot import 'nowhere.at_all'"),
        (("tests.shadow.engine:absent",), {}, "has no attribute 'absent'"),
        (("tests.shadow.engine",), {}, "expected module:function"),
        (("tests.shadow.engine:Layer",), {}, "is a class"),
        (("tests.shadow.engine:square",), {}, "none that is known fits"),
        ((CHUNKS, "chunks"), {}, "operator: got 'chunks'"),
        ((CHUNKS, "gdn_decode"), {}, "are judged as chunk_metadata"),
        ((CHUNKS,), {"signature": "fla"}, "expected auto or one of"),
        ((CHUNKS,), {"signature": "fla.delta_rule"}, "needs parameters"),
        ((CHUNKS,), {"every": 0}, "every: got 0"),
        ((CHUNKS,), {"adapt": print, "pools": {"pool": "slots"}}, "has no parameters pool, slots"),
    ],
)
def test_what_cannot_be_wrapped_says_so_at_once(made: Any, arguments: Any, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made(*arguments, **options)


def test_wrapping_twice_is_refused(made: Any) -> None:
    made(CHUNKS)
    with pytest.raises(ValueError, match="shadowed already"):
        made(CHUNKS)


def test_somebody_else_s_replacement_is_left_alone(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "cu_seqlens_to_chunk_indices_offsets"
    monkeypatch.setattr(engine, name, getattr(engine, name))  # what is put back in the end
    it = made(CHUNKS)
    monkeypatch.setattr(engine, name, lambda *_: "theirs")
    it.remove()
    assert engine.cu_seqlens_to_chunk_indices_offsets(STARTS, 8) == "theirs"
    assert "replaced by somebody else" in it.report()["notes"][0]


def test_the_host_s_exception_passes_and_is_counted(made: Any) -> None:
    it = made("tests.shadow.engine:fails")
    with pytest.raises(KeyError, match="the host's own"):
        engine.fails(STARTS, 8)
    assert counts(it)["raised"] == 1
    with pytest.raises(TypeError, match="missing 2 required"):
        engine.fails()  # type: ignore[call-arg]
    assert it.report()["counts"]["errors"] == 1


def _breaks(_: Seen) -> Observation:
    raise RuntimeError("the translation is broken")


def _declines(_: Seen) -> Observation:
    raise NotJudged("not today")


@pytest.mark.parametrize("inline", [True, False])
def test_an_error_of_the_shadow_never_reaches_the_host(made: Any, inline: bool) -> None:
    it = made("tests.shadow.engine:square", adapt=_breaks, inline=inline)
    for _ in range(2):
        assert float(engine.square(torch.tensor(3.0))) == 9.0
    assert counts(it)["errors"] == 2
    assert "the translation is broken" in it.report()["first_error"]


def test_a_reference_that_raises_is_an_error_of_the_shadow(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Observation) -> float:
        raise MemoryError("no room for the oracle")

    monkeypatch.setattr(wrapper, "judge", broken)
    it = made(CHUNKS)
    assert len(engine.cu_seqlens_to_chunk_indices_offsets(STARTS, 8)) == 2
    assert counts(it)["errors"] == 1
    assert counts(it)["mismatches"] == 0


def test_skipped_calls_have_reasons(made: Any) -> None:
    it = made("tests.shadow.engine:square", adapt=_declines)
    engine.square(torch.tensor(3.0))
    assert counts(it)["skipped"] == {"not today": 1}


def test_a_full_queue_drops_calls_at_once(made: Any) -> None:
    free, entered = threading.Event(), threading.Event()

    def slow(_: Seen) -> Observation:
        entered.set()
        free.wait(30)
        raise NotJudged("slow")

    it = made("tests.shadow.engine:square", adapt=slow, queue=2)
    for _ in range(5):
        engine.square(torch.tensor(3.0))
    assert entered.wait(30)
    assert not it.flush(0.01)
    free.set()
    assert counts(it)["dropped"] == 3
    assert counts(it)["skipped"] == {"slow": 2}


def test_more_bytes_than_may_wait_are_dropped(made: Any) -> None:
    it = made("tests.shadow.engine:square", adapt=_declines, max_bytes=100)
    engine.square(torch.ones(26))
    engine.square(torch.ones(25))
    assert counts(it)["dropped"] == 1


def test_the_reference_may_call_the_function_itself(made: Any) -> None:
    def calls_back(seen: Seen) -> Observation:
        engine.square(seen.arguments["x"])
        raise NotJudged("called back")

    it = made("tests.shadow.engine:square", adapt=calls_back, inline=True)
    engine.square(torch.tensor(3.0))
    assert counts(it)["calls"] == 1


def test_threads_lose_no_call(made: Any) -> None:
    it = made(CHUNKS, queue=1000)

    def work() -> None:
        for _ in range(50):
            engine.cu_seqlens_to_chunk_indices_offsets(STARTS, 8)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts(it)["calls"] == 200
    assert counts(it)["compared"] == 200


def test_a_compiled_host_is_left_alone(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    it = made(CHUNKS)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    engine.cu_seqlens_to_chunk_indices_offsets(STARTS, 8)
    assert counts(it)["calls"] == 0


def test_capture_of_a_graph_is_skipped(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    it = made(CHUNKS)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    engine.cu_seqlens_to_chunk_indices_offsets(STARTS, 8)
    assert counts(it)["skipped"] == {"CUDA graph capture": 1}


def test_how_a_target_is_understood_is_said(capsys: pytest.CaptureFixture[str], made: Any) -> None:
    made("tests.shadow.engine:fused_sigmoid_gating_delta_rule_update", quiet=False)
    said = capsys.readouterr().err
    assert "is taken as fused_sigmoid_gating.vk" in said
    assert "if that is wrong, give signature='fused_sigmoid_gating.kv'" in said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_is_left_alone(made: Any) -> None:
    it = made("tests.shadow.engine:square", adapt=_declines)
    engine.square(torch.tensor(3.0))
    counts(it)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs is ended by the system
        try:
            result = float(engine.square(torch.tensor(3.0)))
            os.write(write, f"{result} {it.counts.calls} {it.flush(1)} {len(it.notes)}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    assert os.read(read, 4096).decode() == "9.0 1 True 1"
