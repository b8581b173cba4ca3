"""Reading what the compiler says; and the real compiler."""

import jax
import jax.numpy as jnp
import pytest

from sam_jax import sharding
from sam_jax.estimates import tpu as tpu_estimates

HLO = """
HloModule step, is_scheduled=true, num_partitions=2

%fused (p: f32[8]) -> f32[8] {
  %limit = s32[] constant(7)
  ROOT %x = f32[8]{0} add(f32[8] %p, f32[8] %p)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = f32[8]{0} fusion(%p), kind=kLoop, calls=%fused, backend_config={"estimated_cycles":"100"}
  %g = (f32[8]{0}, f32[16]{0}) all-gather-start(%a), dimensions={0}
  %h = f32[16]{0} all-gather-done(%g)
  ROOT %k = f32[8] custom-call(%a), custom_call_target="tpu_custom_call", metadata={op_name="f/pallas_call"} {COST}
}

%condition (p: (s32[], f32[8])) -> pred[] {
  %bound = s32[]{:T(128)} constant(5)
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %w = (s32[], f32[8]) while(%t), condition=%condition, body=%body
  %v = (s32[], f32[8]) while(%t), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"2"}}
  %r = f32[8]{0} all-reduce(%w), to_apply=%fused, backend_config={"estimated_cycles":"30"}
  ROOT %o = f32[8]{0} copy(%r), backend_config={"estimated_cycles":"4"}
}
"""
COST = '"cost_estimate":{"flops":"3000","transcendentals":"9","bytes_accessed":"40"}'
# 10 FLOPs and 1 byte per second, 1 cycle per second: 300 seconds of arithmetic, 40 of memory.
CHIP = tpu_estimates.Chip(
    flops=10.0,
    hbm=1.0,
    clock=1.0,
    bandwidth=1.0,
    interconnect=1.0,
    smallest="",
    schedules=((r"slow_\d", 4.0), ("slow", 2.0)),
)


def test_loops_are_multiplied_out():
    found = tpu_estimates.estimate_cycles(HLO.replace("{COST}", "{" + COST + "}"), CHIP)
    assert (found.kernels, found.kernel_cycles) == (7, 7 * 300)
    assert found.collectives == {"all-gather": 7, "all-reduce": 1}
    # Of two chips each sends half of the gathered array, and the reduced one once.
    assert found.communication == found.exposed == 7 * 32 + 32
    assert found.cycles == (5 + 2) * (100 + 300) + 30 + 4 + found.exposed


def test_kernels_cost_what_they_state():
    assert tpu_estimates.kernel_cycles("pallas_call", CHIP) == 0
    assert tpu_estimates.kernel_cycles(f"pallas_call {COST}", CHIP) == 300
    assert tpu_estimates.kernel_cycles(f"pallas_call {COST.replace('40', '4000')}", CHIP) == 4000
    for name, factor in (("slow_3.2", 4), ("slow", 2), ("fast_slow", 1)):
        assert tpu_estimates.kernel_cycles(f"  ROOT %{name} = f32[8] pallas_call {COST}", CHIP) == factor * 300
    assert tpu_estimates.kernel_cycles(COST, CHIP) == round(300 * tpu_estimates.XLA_FLASH_FACTOR)


def test_matmul_flops_counts_products_convolutions_and_loops():
    def function(x, kernel, w):
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

        def body(carry, _):
            return jax.jit(jnp.matmul)(carry, w), None

        return jax.lax.scan(body, y.reshape(-1, 6), None, length=3)[0]

    shapes = [(2, 8, 8, 4), (3, 3, 4, 6), (6, 6)]
    found = tpu_estimates.matmul_flops(function, *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes))
    assert found == 2 * (2 * 8 * 8 * 6) * (3 * 3 * 4) + 3 * 2 * (2 * 8 * 8) * 6 * 6


def test_an_unknown_topology_is_one_clear_line():
    with pytest.raises(tpu_estimates.TopologyError, match=r"'v9:2x2' is not known; expected one of v5e"):
        tpu_estimates.topology_devices("v9:2x2")


@pytest.mark.libtpu
def test_the_real_compiler():
    chip, devices = tpu_estimates.topology_devices("v5e:2x2")
    assert len(devices) == 4
    one_chip = jax.sharding.SingleDeviceSharding(devices[0])
    x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=one_chip)
    found = tpu_estimates.compile_for(chip, jax.jit(jnp.matmul), x, x)
    assert 0.9 < found.seconds / (2 * 4096**3 / chip.flops) < 1.3
    assert found.flops == pytest.approx(2 * 4096**3, rel=0.01)
    assert (found.kernels, found.kernel_seconds) == (0, 0)
    assert (found.communication_seconds, found.exposed_seconds, found.collectives) == (0, 0, {})
    assert len(tpu_estimates.topology_devices("v5e:1")[1]) == 1
    assert found.arguments == pytest.approx(2 * 4096**2 * 2 / 2**30)
    assert found.peak >= found.arguments + 4096**2 * 2 / 2**30
    with pytest.raises(tpu_estimates.TopologyError, match="cannot compile for 'v5e:3x7'"):
        tpu_estimates.topology_devices("v5e:3x7")


@pytest.mark.libtpu
def test_communication_of_the_real_compiler():
    """A layer in a loop: parameters are gathered, gradients reduced and scattered, then summed among the copies."""
    chip, devices = tpu_estimates.topology_devices("v5e:4x4")
    mesh = sharding.make_mesh(-1, 4, devices)
    width, depth, tokens = 1024, 3, 4096

    def loss(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0].astype(jnp.float32).sum()

    def shape(dims, *axes):
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(dims, jnp.bfloat16, sharding=where)

    kernels = shape((depth, width, width), None, "fsdp")
    gradient = jax.jit(jax.grad(loss), out_shardings=kernels.sharding)
    found = tpu_estimates.compile_for(chip, gradient, kernels, shape((tokens, width), sharding.AXES))
    # Two gathers and a scatter of 3/4 of a kernel, and a sum of a quarter of it, which sends 3/2 of that.
    sent = depth * width**2 * 2 * (3 * 3 / 4 + 3 / 8)
    assert found.communication_seconds == pytest.approx(sent / chip.interconnect, rel=0.1)
    assert 0 < found.exposed_seconds < found.communication_seconds
    assert found.exposed_seconds < found.seconds
    assert found.collectives["all-gather"] >= depth
