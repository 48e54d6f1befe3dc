"""Plans for browsers: they fit what a browser allows, name what they were made of, and lower like any other plan."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.serve.in_thread import PATIENCE
from tests.tiny import ALL, CTX, Tiny, tiny
from wgllm.errors import UsageError
from wgllm.plan import Limits, Plan, PlanError, Width
from wgllm.serve import plans as plans_module
from wgllm.serve.model import ServedModel
from wgllm.serve.plans import LIMITS, BrowserPlan, PlanRefused, Request, limits_of

LEAST: dict[str, int] = {name: getattr(Limits(), ours) for name, ours in LIMITS.items()}
LARGE = {
    "maxBufferSize": 2**53, "maxStorageBufferBindingSize": 2147483644, "maxStorageBuffersPerShaderStage": 64,
    "maxComputeWorkgroupStorageSize": 49152, "maxComputeInvocationsPerWorkgroup": 1024,
    "maxComputeWorkgroupSizeX": 1024, "maxComputeWorkgroupsPerDimension": 2**31 - 1,
}  # fmt: skip


def opened(name: str, **options: Any) -> ServedModel:
    return ServedModel.open(str(tiny(name).path), offline=True, **options)


@pytest.fixture(scope="module")
def ringed() -> Iterator[ServedModel]:
    """Some of its layers have a window."""
    model = opened("gemma3.f32")
    yield model
    model.close()


def made(model: ServedModel, limits: dict[str, int] | None = None, **options: Any) -> BrowserPlan:
    return model.plan(LEAST if limits is None else limits, **{"software": False, "ctx_size": None, **options})


def regions(plan: Plan) -> Iterator[tuple[int, int, int]]:
    yield from (fill.region for fill in plan.fills)
    yield from (region for node in plan.nodes for region in node.regions)
    yield from (binding for s in plan.schedules.values() for d in s for binding in d.bindings)


def fits(plan: Plan, limits: Limits) -> None:
    assert max(b.size for b in plan.buffers) <= limits.buffer
    assert max(size for _, _, size in regions(plan)) <= limits.binding
    assert all(len(d.bindings) <= limits.bindings for s in plan.schedules.values() for d in s)
    assert all(d.groups <= limits.workgroups for s in plan.schedules.values() for d in s)


@pytest.mark.parametrize("model", ALL, ids=lambda t: t.id)
def test_every_family_has_a_plan_for_the_least_and_for_large_limits(model: Tiny) -> None:
    with_model = opened(model.id)
    for reported in (LEAST, LARGE, {}):
        plan = made(with_model, reported)
        fits(plan.plan, limits_of(reported))
        assert plan.plan.host == "tint" and plan.plan.sampling is not None
        assert (plan.plan.cells, plan.plan.rows) == (CTX, 64)
    with_model.close()


def test_what_a_page_is_told(ringed: ServedModel) -> None:
    plan = made(ringed)
    told = json.loads(json.dumps(plan.to_json()))
    assert set(told) == {
        "id", "plan", "ctx_size", "rows", "windows", "weights_bytes", "gpu_bytes", "file_etag"
    }  # fmt: skip
    assert told["plan"]["schedules"] == told["plan"]["kernels"] == []
    replayed = Plan.from_json(told["plan"])
    assert replace(replayed, schedules=plan.plan.schedules, kernels=plan.plan.kernels) == plan.plan
    assert told["weights_bytes"] == sum(fill.region.size for fill in plan.plan.fills)
    assert told["gpu_bytes"] == sum(buffer.size for buffer in plan.plan.buffers)
    assert (told["ctx_size"], told["rows"]) == (CTX, 64)
    # What wgllm.cache needs: rings have room for their window and the widest step.
    assert told["windows"].keys() == told["plan"]["states"].keys()
    assert set(told["windows"].values()) == {None, 32}
    for name, window in told["windows"].items():
        state = told["plan"]["states"][name]
        cells = state["shape"][1 if state["kv_type"] == "i32" else 2]
        assert cells == (CTX if window is None else window + told["rows"])


def test_schedules_given_one_by_one_are_the_plan_s_own(ringed: ServedModel) -> None:
    plan = made(ringed)
    widths = [
        Width("body", 1, 1), Width("body", 3, 300), Width("body", 64, 512), Width("tail", 1), Width("tail", 5, 9),
        Width("greedy", 1), Width("draw", 1),
    ]  # fmt: skip
    for asked in ([w] for w in widths):
        check_schedules(plan, asked)
    check_schedules(plan, widths)
    check_schedules(plan, widths[::-1])


def check_schedules(plan: BrowserPlan, asked: list[Width]) -> None:
    own = plan.plan
    answer = json.loads(json.dumps(plan.schedules(asked)))
    texts = [(kernel["text"], kernel["entry"]) for kernel in answer["kernels"]]
    assert len(set(texts)) == len(texts)
    assert {d[0] for s in answer["schedules"] for d in s["dispatches"]} == set(range(len(texts)))
    given = {Width(s["part"], s["rows"], s["cells"]): s["dispatches"] for s in answer["schedules"]}
    assert len(given) == len(answer["schedules"])
    for part, rows, cells in asked:
        width, schedule = own.schedule(part, rows, cells if part == "body" else 0)
        kernels = [own.kernels[d.kernel] for d in schedule]
        assert [texts[d[0]] for d in given[width]] == [(k.source.text, k.entry) for k in kernels]
        assert [d[1:] for d in given[width]] == [
            [list(map(list, d.bindings)), d.groups, d.node, d.cost] for d in schedule
        ]
    # As a plan of its own it goes to and fro.
    whole = Plan.from_json({**plan.facts, **answer})
    assert json.loads(json.dumps(whole.to_json()))["schedules"] == answer["schedules"]


@pytest.mark.parametrize(
    "width",
    [
        Width("body", 65, 10), Width("body", 1, 0), Width("body", 1, 513), Width("tail", 10**6),
        Width("greedy", 2), Width("draw", 64),
    ],
)  # fmt: skip
def test_widths_that_a_plan_does_not_have(ringed: ServedModel, width: Width) -> None:
    with pytest.raises(PlanError, match="the plan has no"):
        made(ringed).schedules([width])


def test_an_id_names_all_that_a_plan_is_made_of(ringed: ServedModel) -> None:
    other = opened("gemma3.f32")
    plan = made(ringed)
    assert made(other).id == plan.id and made(other).file.etag == plan.file.etag
    assert made(ringed) is plan  # and is not made again
    ids = {
        plan.id,
        made(ringed, LARGE).id,
        made(ringed, software=True).id,
        made(ringed, ctx_size=256).id,
        made(opened("gemma3.f32", kv_type="f16")).id,
        made(opened("gemma2.f32")).id,
    }
    assert len(ids) == 6
    # Limits that come to the same make the same plan.
    assert made(ringed, {**LEAST, "maxBufferSize": LEAST["maxBufferSize"] + 12345}).id == plan.id
    assert made(ringed, {}).id == plan.id
    # The weights of all that have the same fills are the same file, whose hashes they share.
    assert made(ringed, software=True).file.etag == plan.file.etag
    other.close()


def test_the_last_few_plans_are_kept() -> None:
    model = opened("llama-tied.q8_0")
    plans = [made(model, ctx_size=n) for n in range(256, 256 + 9)]
    assert model.plans.find(plans[0].id) is None
    assert all(model.plans.find(plan.id) is plan for plan in plans[1:])
    assert model.plans.find("") is None
    model.plans.find(plans[1].id)  # used: now the next one is the oldest
    made(model, ctx_size=300)
    assert model.plans.find(plans[1].id) is plans[1] and model.plans.find(plans[2].id) is None
    assert made(model, ctx_size=256).id == plans[0].id
    model.close()


@pytest.mark.parametrize(
    ("reported", "expected"),
    [
        ({}, Limits()),
        (LEAST, Limits()),
        (LARGE, Limits(4 << 30, 1 << 30, 8, 32768, 1024, 65535)),
        ({**LARGE, "maxComputeWorkgroupSizeX": 256}, Limits(4 << 30, 1 << 30, 8, 32768, 256, 65535)),
        ({"maxBufferSize": (1 << 30) - 1, "maxTextureDimension2D": 8192}, Limits(buffer=512 << 20)),
    ],
)
def test_limits(reported: dict[str, int], expected: Limits) -> None:
    found = limits_of(reported)
    assert found == expected
    believed = {name: reported.get(name, LEAST[name]) for name in LIMITS}
    assert all(asdict(found)[LIMITS[name]] <= value for name, value in believed.items())


@pytest.mark.parametrize("name", LIMITS)
def test_a_device_that_has_less_than_every_webgpu_device_is_refused(ringed: ServedModel, name: str) -> None:
    with pytest.raises(PlanRefused, match=f"{name} is {LEAST[name] - 1} in this browser") as refused:
        made(ringed, {**LARGE, name: LEAST[name] - 1})
    assert refused.value.code == "too_large"


def test_a_smaller_context_is_taken_where_nobody_asked_for_one() -> None:
    model = opened("llama-tied.f32", overrides={"llama.context_length": 8192})
    assert model.default_ctx == 8192
    tight = replace(Limits(), binding=1 << 18, buffer=1 << 19)
    plan = model.plans.make(Request(tight, False, 8192, exact=False))
    assert 512 <= plan.plan.cells < 8192 and plan.to_json()["ctx_size"] == plan.plan.cells
    fits(plan.plan, tight)
    with pytest.raises(PlanRefused, match="8192 tokens") as refused:
        model.plans.make(Request(tight, False, 8192, exact=True))
    assert refused.value.code == "too_large"
    with pytest.raises(PlanRefused, match="512 tokens"):
        model.plans.make(Request(replace(tight, binding=1 << 12), False, 8192, exact=False))
    assert model.plan({}, software=False, ctx_size=2048).plan.cells == 2048
    model.close()


def test_contexts_that_a_model_can_t_have() -> None:
    learned = opened("gpt2.f32")
    assert made(learned, ctx_size=0).plan.cells == learned.default_ctx
    with pytest.raises(UsageError, match="has learned"):
        made(learned, ctx_size=100_000)
    learned.close()
    model = opened("llama-tied.q8_0")
    with pytest.raises(UsageError, match="makes no sense"):
        made(model, ctx_size=-1)
    with pytest.raises(PlanRefused, match="tokens"):
        made(model, LARGE, ctx_size=2**31 - 1)
    for ctx in (1, 2, 15, 33):
        plan = made(model, ctx_size=ctx)
        assert plan.plan.cells == ctx and plan.plan.rows == min(64, ctx)
    model.close()


def test_a_context_that_changes_the_weights() -> None:
    """LongRoPE has other frequencies beyond the context that was learned first."""
    model = opened("phi3-longrope.f16")
    limit = model.plans._built(1).ctx_limit
    assert limit is not None
    short, long = made(model, ctx_size=limit), made(model, ctx_size=limit + 1)
    assert short.file.etag != long.file.etag

    def tables(plan: BrowserPlan) -> list[bytes]:
        """The first rows of rope's tables."""
        parts = [part for piece in plan.file.pieces for part in piece.parts if part.fill.kind == "rope"]
        return [plans_data(plan, part.fill)[: 4 * part.fill.dim * 8] for part in parts]

    assert tables(short) != tables(long)
    model.close()


def plans_data(plan: BrowserPlan, fill: Any) -> bytes:
    from wgllm.backends.fills import fill_bytes

    return fill_bytes(fill, plan.file._weights, 0, 4 * fill.dim * 8).tobytes()


def test_software_gets_its_own_shaders_and_shorter_steps(ringed: ServedModel) -> None:
    card, software = made(ringed), made(ringed, software=True)
    assert (card.plan.rows, software.plan.rows) == (64, 16)
    entries = {plan.id: {k.entry for k in plan.plan.kernels} for plan in (card, software)}
    assert "matmul_software" in entries[software.id] and "matmul_software" not in entries[card.id]
    assert not any("subgroup" in k.source.text for plan in (card, software) for k in plan.plan.kernels)


def test_an_operator_without_a_shader(monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened("llama-tied.q8_0")
    monkeypatch.setattr(plans_module, "has_shader", lambda node: node.op != "embed")
    with pytest.raises(PlanRefused, match="no shader computes embed") as refused:
        made(model)
    assert refused.value.code == "no_shader"
    model.close()


def test_many_at_once_with_limits_of_their_own() -> None:
    model = opened("gemma3.f32")
    wishes = [(LEAST, False), (LARGE, False), (LEAST, True), (LARGE, True)]
    begun = threading.Barrier(8)

    def ask(i: int) -> tuple[str, str]:
        begun.wait(PATIENCE)
        limits, software = wishes[i % 4]
        plan = made(model, limits, software=software)
        widths = [Width("body", rows, cells) for rows in (1, 2, 8, 16) for cells in (1, 300, 512)]
        answers = [plan.schedules([width]) for width in (widths if i % 2 else widths[::-1])]
        hashes = [plan.file.sha256(piece) for piece in plan.file.pieces]
        return plan.id, json.dumps([sorted(map(str, answers)), hashes])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert found[:4] == found[4:] and len({plan_id for plan_id, _ in found}) == 4
    alone = opened("gemma3.f32")
    assert [made(alone, limits, software=software).id for limits, software in wishes] == [
        i for i, _ in found[:4]
    ]
    model.close()
    alone.close()
