"""Options and fixtures: where reference data lies, and which real models may be used."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from hypothesis import HealthCheck, settings

from tests.parallel import Peers, wanted

if TYPE_CHECKING:
    from tests.web.chromium import Chromium
    from wgllm.backends.device import Device
    from wgllm.wgsl import Source

DATA = Path(__file__).parent / "data"
DEFAULT_MODELS = ("smollm2",)
REFERENCE_FILES = {"smollm2": "smollm2", "gemma3:270m": "gemma3", "qwen2.5-coder:1.5b": "qwen2"}
NO_ADAPTER = "no Vulkan, Metal or DirectX 12 adapter"
NO_BROWSER = "no browser with WebGPU"
SHADERS = "shaders"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--models",
        default=",".join(DEFAULT_MODELS),
        help="models of the catalogue that tests may fetch: names with commas, 'all' or 'none' (default: smollm2)",
    )
    parser.addoption(
        "--update-help",
        action="store_true",
        help="write the help texts to tests/data/help instead of comparing",
    )
    parser.addoption(
        "--update-snapshots",
        action="store_true",
        help="write the screens to tests/data/screens instead of comparing",
    )
    parser.addoption(
        "--write-families",
        action="store_true",
        help="run what compares logits with references and write README.md's tables; --models all: of real models, too",
    )


# The same examples in every run, so that one which fails has not come by chance, and no limits of time, since the
# machine may do other things too. --hypothesis-profile=explore looks for new ones.
settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("repeatable", settings.get_profile("explore"), derandomize=True)
settings.load_profile("repeatable")


def pytest_configure(config: pytest.Config) -> None:
    # In the background of a shell or under nohup these are ignored, which processes that tests start would inherit:
    # a handler does not go with them.
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", lambda *_: None)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)
    if config.getoption("--write-families"):
        from tests.families import README, Writer

        config.pluginmanager.register(Writer(README, real=config.getoption("--models") == "all"))


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return wanted(config)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips tests of models that were not asked for. Tests with models run after the others, marked ones at last."""
    asked = config.getoption("--models")
    allowed = set(REFERENCE_FILES) if asked == "all" else set() if asked == "none" else set(asked.split(","))
    for item in items:
        marker = item.get_closest_marker("model")
        if marker is not None and marker.args[0] not in allowed:
            item.add_marker(pytest.mark.skip(reason=f"needs --models {marker.args[0]} (or all)"))
    for marker in ("model", "last"):
        items.sort(key=lambda item, marker=marker: item.get_closest_marker(marker) is not None)  # type: ignore[misc]


@pytest.fixture(scope="session")
def model_path() -> Callable[[str], Path]:
    """Catalogue name -> the file, fetched at first use."""
    from wgllm.hub import resolve

    return resolve


@pytest.fixture(scope="session")
def reference() -> Callable[[str], Any]:
    """Catalogue name -> expected ids, logits and tokens of the real model (tests/data/README.md)."""
    return lambda name: json.loads(
        (DATA / "real" / f"{REFERENCE_FILES[name]}.json").read_text(encoding="utf-8")
    )


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """Takes a model's path, the worst error of its logits and, if it was not NumPy's, the adapter's name: for
    README.md's tables."""
    from tests.families import PROPERTY, measurement

    # Plain, for processes to tell each other.
    return lambda *found: record_property(PROPERTY, tuple(measurement(*found)))


def open_device(*, default_limits: bool) -> Device:
    """A real graphics card, else a software adapter; skips where there is neither.

    As models are run, or with ``default_limits`` what every WebGPU device has, and no features.
    """
    from wgllm import placement
    from wgllm.backends.device import Device, adapters, choose

    found = adapters()
    if not found:
        if os.environ.get("WGLLM_REQUIRE_ADAPTER"):  # CI, which has installed one
            pytest.fail(NO_ADAPTER)
        pytest.skip(NO_ADAPTER)
    best = choose(found, software=True)
    return Device.open(best, default_limits=True) if default_limits else placement.open_device(best)


@pytest.fixture(scope="session")
def peers(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Peers:
    """This process and the others of the run."""
    base = tmp_path_factory.getbasetemp()
    # With one process the base is this run's own folder, with several it lies in one.
    return Peers(pytestconfig, (base.parent if hasattr(pytestconfig, "workerinput") else base) / "peers")


@pytest.fixture(scope="session", autouse=True)
def _recorded_shaders(peers: Peers) -> Iterator[None]:
    """Keeps every shader that wgpu has accepted in this process."""
    from wgllm.backends.device import Device

    compile_shader = Device.shader

    with (peers.own / SHADERS).open("wb") as file, pytest.MonkeyPatch.context() as patch:

        def recording(device: Device, source: Source) -> Any:
            module = compile_shader(device, source)
            file.write(pickle.dumps(source))
            file.flush()
            return module

        patch.setattr(Device, "shader", recording)
        yield


@pytest.fixture
def compiled_shaders(peers: Peers) -> dict[str, Source]:
    """By its text, every shader that wgpu has accepted since the tests began, in all processes. For tests marked
    ``last``: what another process compiles with its own last tests is missed, since none ends before all do."""
    compiled: dict[str, Source] = {}
    for folder in peers.folders():
        with (folder / SHADERS).open("rb") as file, contextlib.suppress(EOFError, pickle.UnpicklingError):
            while True:
                source = pickle.load(file)
                compiled[source.text] = source
    return compiled


@pytest.fixture(scope="session")
def own_device() -> Device:
    """With all limits that the adapter has, and the features that shaders make use of."""
    return open_device(default_limits=False)


@pytest.fixture(scope="session")
def default_device() -> Device:
    """With the limits that every WebGPU device has, and no features."""
    return open_device(default_limits=True)


@pytest.fixture(params=["own", "default"])
def device(request: pytest.FixtureRequest) -> Device:
    """Each test with both."""
    found: Device = request.getfixturevalue(f"{request.param}_device")
    return found


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """A browser with WebGPU in software, for all tests; skips where there is none."""
    from tests.web.chromium import NoBrowser, launched

    try:
        with launched() as browser:
            yield browser
    except NoBrowser as error:
        without_browser(error)


def without_browser(error: Exception) -> NoReturn:
    """Skips, but fails in CI, which has installed one."""
    if os.environ.get("WGLLM_REQUIRE_BROWSER"):
        pytest.fail(f"{NO_BROWSER}: {error}")
    pytest.skip(f"{NO_BROWSER}: {error}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Tests without an adapter or a browser are skipped at one place, so that the summary has one line for each."""
    report = yield
    if report.skipped:
        if NO_ADAPTER in str(report.longrepr):
            report.longrepr = (__file__, 1, f"Skipped: {NO_ADAPTER}")
        elif isinstance(report.longrepr, tuple) and NO_BROWSER in report.longrepr[2]:
            report.longrepr = (__file__, 1, report.longrepr[2])
    return report


@pytest.fixture(autouse=True)
def _no_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests see wgllm as a user does who has set nothing and has no graphics card, unless they ask for one."""
    for name in ("WGLLM_DEBUG", "WGLLM_FUSE", "WGLLM_AHEAD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WGLLM_BACKEND", "numpy")
    monkeypatch.setenv("WGLLM_TUNE", "0")
