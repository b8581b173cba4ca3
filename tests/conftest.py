"""Strict switches for every test, and which tests run.

Eight host devices, as sharded code needs them; warnings are errors. Rank promotion stays allowed: adding a bias (C,) to
(B, N, T, C) is how every layer is written. Tiny models take longer to compile than to run: programs are compiled with
few optimisations and by XLA's older, quicker emitters, but for `-m slow`, `-m browser` and files that want the
optimisations; they stay in pytest's cache.
"""

import os
from pathlib import Path

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import pytest

from sam_jax.checkpoint import save_model
from tests.tiny import TINY, random_variables

# Markers that run only where `-m` names them.
OPT_IN = ("oracle", "slow", "long", "libtpu", "browser")
MOST_MAPS = 25_000
LONGEST = ("test_distributed.py", "test_loop.py")
# The last match wins. What others do inside their own packages is theirs.
WARNINGS = (
    "error",
    "ignore::DeprecationWarning:(orbax|pycocotools|flax|grain|etils|tyro|torch|absl)\\b.*",
)


def pytest_addoption(parser):
    parser.addoption("--no-skips", action="store_true", help="fail where a test is skipped: it runs nowhere, then")


def pytest_sessionfinish(session, exitstatus):
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.option.no_skips and reporter and reporter.stats.get("skipped") and not exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def compiles_fast(config):
    return not any(name in config.option.markexpr for name in ("slow", "browser"))


def pytest_configure(config):
    for line in WARNINGS:
        config.addinivalue_line("filterwarnings", line)
    jax.config.update("jax_disable_most_optimizations", compiles_fast(config))
    # XLA aborts at a flag that it does not know: that of JAX 0.11, and the TPU compiler's.
    if compiles_fast(config) and jax.__version_info__ < (0, 11) and "libtpu" not in config.option.markexpr:
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"  # read when the first program compiles
    # In the environment, too, so that processes which tests start keep their programs there.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(config.cache.mkdir("jax"))
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_collection_modifyitems(config, items):
    """Plain `pytest` leaves all of them out, `-m oracle` adds no slow ones, `-m "oracle or slow"` takes both."""
    left_out = [name for name in OPT_IN if name not in config.option.markexpr]
    chosen = [item for item in items if not any(item.get_closest_marker(name) for name in left_out)]
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    # Files that take minutes come first: at the end one worker would wait for the other.
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """After a file of tests programs go where they are many: a process crashes that has 65,530 maps of memory."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > MOST_MAPS:
        jax.clear_caches()


@pytest.fixture(scope="module")
def all_optimisations(request):
    """Compiles a file's programs with all optimisations, as users do; the emitters stay, as they are the process's."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", compiles_fast(request.config))


@pytest.fixture(scope="session")
def tiny():
    """The config of a model that compiles in a second or two."""
    return TINY


@pytest.fixture(scope="session")
def variables():
    """Variables of the tiny model, every leaf random."""
    return random_variables(TINY)


@pytest.fixture(scope="session")
def checkpoint(variables, tmp_path_factory):
    """The tiny model as a directory, for programs; no test may change it."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_model(path, TINY, variables)
    return path


@pytest.fixture(scope="session")
def browser():
    """Chromium, for the tests of the pages; one for all, since its driver cannot run twice."""
    from tests.serving.browsing import chromium

    with chromium() as browser:
        yield browser
