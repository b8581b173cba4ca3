"""Collectives as libtpu writes them: lines of programs compiled for v5e, less what nobody reads."""

import pytest

from sam_jax.estimates import communication as tpu_communication
from sam_jax.estimates import tpu as tpu_estimates

# One byte and one cycle per second, so that a collective takes as many cycles as it sends bytes.
CHIP = tpu_estimates.Chip(flops=1.0, hbm=1.0, clock=1.0, bandwidth=1.0, interconnect=1.0, smallest="")
GATHERED, REDUCED = 3 * 512 * 2048 * 2, 2 * 3 * 512 * 2048 * 2 // 4

# v5e:4x4, data 4 and fsdp 4: a parameter gathered, its gradient reduced among copies.
SYNCHRONOUS = """
ENTRY %main (p: bf16[512,2048]) -> bf16[512,2048] {
  %all-gather.30 = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} all-gather(%param.4), channel_id=8, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={0}, use_global_device_ids=true
  %fusion.13 = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} fusion(%copy-done, %all-gather.30), kind=kOutput, \
calls=%fused_computation.23, backend_config={"window_config":{"estimated_cycles":"139100"}}
  ROOT %all-reduce.3 = bf16[512,2048]{1,0:T(8,128)(2,1)S(1)} all-reduce(%fusion.13), channel_id=10, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_0'}, use_global_device_ids=true, to_apply=%add.3.clone
}
"""

# The same in a loop: gathered while something is multiplied, reduced and scattered at once, its edges sent on.
ASYNCHRONOUS = """
%fused_computation.25 (param_0.74: bf16[1,512,2048]) -> (bf16[1,512,2048], bf16[1,2048,2048], s32[2], u32[], u32[]) {
  %param_0.74 = bf16[1,512,2048]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %all-gather.21 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.74), channel_id=13, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={1}, use_global_device_ids=true, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %custom-call.4 = (bf16[1,512,2048]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)S(1)}, \
s32[2]{0:S(4)}, u32[]{:S(2)}, u32[]{:S(2)}) custom-call(%all-gather.21), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.33 (param_0.79: bf16[1,512,2048], param_9.2: bf16[2048,2048]) -> bf16[2048,2048] {
  %all-gather.23 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)S(1)} all-gather(%param_0.79), channel_id=13, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={1}, use_global_device_ids=true, \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  ROOT %convolution.17 = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} convolution(%param_9.2, %param_9.2)
}

%fused_computation.27 (param_0.82: bf16[1,512,2048], param_1.80: bf16[1,2048,2048]) -> bf16[1,2048,2048] {
  %all-gather.25 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)} all-gather(%param_0.82), channel_id=13, \
replica_groups=mesh['axis_0'=4,'axis_1'=4] {'axis_1'}, dimensions={1}, use_global_device_ids=true, \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  ROOT %custom-call.6 = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)S(1)} custom-call(%param_0.82, %param_1.80, \
%all-gather.25), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.clone.1 (input.3: bf16[2048,2048]) -> bf16[528,2048] {
  %input.3 = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %pad.3 = bf16[2112,2048]{1,0:T(8,128)(2,1)} pad(%input.3, %constant.1), padding=0_64x0_0
  %all-reduce.9 = bf16[2112,2048]{1,0:T(8,128)(2,1)} all-reduce(%pad.3), channel_id=5, \
replica_groups={{0,1,2,3},{4,5,6,7},{8,9,10,11},{12,13,14,15}}, use_global_device_ids=true, to_apply=%add.clone
  ROOT %dynamic-slice.51 = bf16[528,2048]{1,0:T(8,128)(2,1)S(1)} dynamic-slice(%all-reduce.9, %multiply.12, \
%constant.167), dynamic_slice_sizes={528,2048}
}

%wide.body (wide.param.5: (s32[], bf16[2048,2048])) -> (s32[], bf16[2048,2048]) {
  %async-collective-start = (bf16[1,512,2048]{2,1,0:T(8,128)(2,1)S(1)}, bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)S(1)}, \
s32[2]{0:S(4)}, u32[]{:S(2)}, u32[]{:S(2)}) fusion(%copy.1), kind=kCustom, \
output_to_operand_aliasing={{0}: (0, {})}, calls=%fused_computation.25
  %copy.33 = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} copy(%get-tuple-element.326), \
backend_config={"window_config":{"estimated_cycles":"92288"}}
  %fusion.33 = bf16[2048,2048]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.349, %copy.33), kind=kOutput, \
calls=%async_collective_fusion.33, backend_config={"window_config":{"estimated_cycles":"{MEANWHILE}"}}
  %async-collective-done = bf16[1,2048,2048]{2,1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.359), kind=kCustom, \
output_to_operand_aliasing={{}: (1, {})}, calls=%fused_computation.27
  %fusion.31 = bf16[528,2048]{1,0:T(8,128)(2,1)S(1)} fusion(%get-tuple-element.358), kind=kCustom, \
calls=%all-reduce-scatter.clone.1
  %collective-permute-start = (bf16[48,2048]{1,0:T(8,128)(2,1)S(1)}, bf16[48,2048]{1,0:T(8,128)(2,1)S(1)}, \
u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%slice.3), channel_id=1, \
source_target_pairs={{0,1},{1,2},{2,3},{4,5},{5,6},{6,7},{8,9},{9,10},{10,11},{12,13},{13,14},{14,15}}
  %dynamic-slice.56 = u32[1]{0:T(128)} dynamic-slice(%get-tuple-element.348, %partition-id.14), \
dynamic_slice_sizes={1}, backend_config={"window_config":{"estimated_cycles":"1826"}}
  %collective-permute-done = bf16[48,2048]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%collective-permute-start)
  ROOT %tuple.56 = (s32[]{:T(128)}, bf16[2048,2048]{1,0:T(8,128)(2,1)}) tuple(%add.30, %fusion.33)
}

%condition (p: (s32[], bf16[2048,2048])) -> pred[] {
  ROOT %lt = pred[]{:T(512)} compare(%i, %bound), direction=LT
}

ENTRY %main (p: bf16[512,2048]) -> bf16[512,2048] {
  ROOT %while.1 = (s32[], bf16[2048,2048]) while(%tuple.1), condition=%condition, body=%wide.body, \
backend_config={"known_trip_count":{"n":"6"}}
}
"""

# The form of other versions of XLA, and two collectives that are under way at the same time.
WRAPPED = """
HloModule jit_step, is_scheduled=true, num_partitions=4

%wrapped (p: f32[25]) -> f32[100] {
  ROOT %all-gather.1 = f32[100]{0:T(128)} all-gather(%p), replica_groups={}, dimensions={0}
}

ENTRY %main (p: f32[25]) -> f32[100] {
  %all-gather-start.1 = (f32[25]{0:T(128)}, f32[100]{0:T(128)}) all-gather-start(%p), replica_groups=[2,2]<=[4]
  %async-start.1 = ((f32[25]{0}), f32[100]{0:T(128)}, u32[]{:S(2)}) async-start(%p), calls=%wrapped
  %copy.1 = f32[100]{0:T(128)} copy(%p), backend_config={"window_config":{"estimated_cycles":"260"}}
  %all-gather-done.1 = f32[100]{0:T(128)} all-gather-done(%all-gather-start.1)
  %async-update.1 = ((f32[25]{0}), f32[100]{0:T(128)}, u32[]{:S(2)}) async-update(%async-start.1)
  ROOT %async-done.1 = f32[100]{0:T(128)} async-done(%async-update.1)
}
"""


def test_synchronous_ones_add_whole():
    found = tpu_estimates.estimate_cycles(SYNCHRONOUS, CHIP)
    assert found.communication == found.exposed == GATHERED + REDUCED
    assert found.cycles == 139100 + GATHERED + REDUCED
    assert found.collectives == {"all-gather": 1, "all-reduce": 1}


@pytest.mark.parametrize("meanwhile", [100, 2 * GATHERED])
def test_asynchronous_ones_hide_behind_what_runs_meanwhile(meanwhile):
    found = tpu_estimates.estimate_cycles(ASYNCHRONOUS.replace("{MEANWHILE}", str(meanwhile)), CHIP)
    scattered, edges = 3 * 2112 * 2048 * 2 // 4, 48 * 2048 * 2
    waits = max(0, GATHERED - 92288 - meanwhile) + scattered + edges - 1826
    assert found.communication == 6 * (GATHERED + scattered + edges)
    assert found.exposed == 6 * waits
    assert found.cycles == 6 * (92288 + meanwhile + 1826 + waits)
    assert found.collectives == {"all-gather": 6, "reduce-scatter": 6, "collective-permute": 6}


def test_the_same_cycles_hide_one_collective_only():
    found = tpu_estimates.estimate_cycles(WRAPPED, CHIP)
    assert found.communication == 400 / 2 + 400 * 3 / 4
    assert found.exposed == 500 - 260
    assert found.collectives == {"all-gather": 2}


def test_one_that_is_never_waited_for_is_waited_for_at_the_end():
    lines = [line for line in WRAPPED.splitlines() if "done" not in line]
    assert tpu_estimates.estimate_cycles("\n".join(lines), CHIP).exposed == 500 - 260


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        ("f32[4,5]{1,0} all-to-all(%p), replica_groups={{0,1},{2,3}}", "all-to-all", 40),
        ("f32[4,5]{1,0} reduce-scatter(%p), replica_groups=[1,8]<=[8]", "reduce-scatter", 7 * 80),
        ("f32[4,5]{1,0} all-reduce(%p), replica_groups=[2,4]<=[4,2]T(1,0)", "all-reduce", 120),
        ("(bf16[2]{0}, /*index=1*/pred[8]{0}) all-gather(%p, %q), replica_groups={}", "all-gather", 12 * 15 / 16),
        ("f32[4,5]{1,0} all-gather(%p), replica_groups=mesh['a'=2,'b'=8] {'a','b':(2)4}", "all-gather", 70),
    ],
)
def test_bytes_follow_from_the_size_of_groups(line, kind, sent):
    event = tpu_communication.event(f"  %x = {line}", "main", {"main": []}, devices=16)
    assert (event.phase, event.collective.kind, event.collective.bytes) == ("now", kind, sent)


def test_sizes_of_arrays():
    assert tpu_communication.array_bytes("(bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, f32[], s4[6], f8e4m3fn[5], pred[3])") == 27
