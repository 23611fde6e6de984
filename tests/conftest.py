"""Eight simulated CPU devices for the tests that need several, and what many tests share."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import processes
from tests.recipes import THOROUGH, TINY

# Before jax is imported anywhere. Processes that tests start have one device (tests/processes.py).
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Strict, here and in every process: types are mixed and ranks are raised only where the code says so.
os.environ["JAX_NUMPY_DTYPE_PROMOTION"] = "strict"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
if not THOROUGH:
    # A program of the tests runs once or twice, and LLVM's optimisations are a quarter of its time.
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Folders, files and tests of what touches jax, flax, orbax or numerics, and one run, kill and resumption.
# The other tests do not depend on the versions of the stack, and CI runs them on its newest end only.
STACK = (
    "tests/ops/test_attention.py",
    "tests/ops/test_bfloat16.py",
    "tests/ops/test_convolution.py",
    "tests/ops/test_gru.py",
    "tests/ops/test_normalization.py",
    "tests/ops/test_rnn.py",
    "tests/models/",
    "tests/training/test_checkpoint.py",
    "tests/training/test_image_task.py",
    "tests/training/test_losses.py",
    "tests/training/test_metrics.py",
    "tests/training/test_optim.py",
    "tests/training/test_parallel.py",
    "tests/training/test_recall_task.py",
    "tests/training/test_saved.py",
    "tests/training/test_step.py",
    "tests/training/test_text_task.py::test_eight_devices_reset_as_one_does",
    "tests/training/test_text_task.py::test_windows_carry_nothing",
    "tests/answers/test_claims.py",
    "tests/data/test_augment.py",
    "tests/inference/test_evaluation.py",
    "tests/faults/test_kill.py::test_a_killed_run_continues_bit_for_bit",
    "tests/test_sample.py::test_the_released_models_speak[gru]",
)


# Slow, so that CI takes about half an hour. Most of these repeat a test that CI runs, on another model, type
# or number of devices. The others take long: a language model killed, two processes, a damaged cache, a run
# that overflows, foreign environments, and what studies stand on. All run before anything is published.
AGAIN = (
    "tests/e2e/test_embedded.py::test_eight_devices_agree_with_one",
    "tests/e2e/test_language_model.py::test_a_language_model_is_no_classifier[attention]",
    "tests/e2e/test_language_model.py::test_another_seed_differs[gru]",
    "tests/e2e/test_language_model.py::test_evaluated_again[attention]",
    "tests/e2e/test_language_model.py::test_killed_it_continues_bit_for_bit",
    "tests/e2e/test_language_model.py::test_no_text_to_train_on_is_one_line[-empty]",
    "tests/e2e/test_language_model.py::test_no_text_to_train_on_is_one_line[content1-symbol]",
    "tests/e2e/test_language_model.py::test_no_text_to_train_on_is_one_line[content2-3]",
    "tests/e2e/test_language_model.py::test_sampled[attention]",
    "tests/e2e/test_language_model.py::test_question_five_is_answered_from_its_logs[attention]",
    "tests/e2e/test_language_model.py::test_scored[attention]",
    "tests/e2e/test_language_model.py::test_the_workdir[attention]",
    "tests/faults/test_hosts.py::test_a_run_of_two_processes_that_one_finishes",
    "tests/faults/test_hosts.py::test_data_that_one_has_not_stop_the_other",
    "tests/faults/test_hosts.py::test_whoever_does_not_answer_is_not_waited_for[0]",
    "tests/faults/test_kill.py::test_the_comparison_can_fail",
    "tests/faults/test_mistakes.py::test_a_run_that_overflows",
    "tests/faults/test_workdir.py::test_a_damaged_cache_stops_nobody",
    "tests/models/test_attention_lm.py::test_any_way_of_cutting_a_text_gives_the_same[2]",
    "tests/models/test_attention_lm.py::test_any_way_of_cutting_a_text_gives_the_same[40]",
    "tests/models/test_attention_lm.py::test_overfits_one_batch[True]",
    "tests/models/test_gru_lm.py::test_scan_and_fused_are_one[float32",
    "tests/models/test_gru_lm.py::test_scan_and_fused_are_one[float64-1e-10-changes1]",
    "tests/models/test_gru_lm.py::test_scan_and_fused_are_one[float64-1e-10-changes3]",
    "tests/models/test_gru_lm.py::test_the_first_layer_looks_up_what_it_would_multiply[changes1]",
    "tests/models/test_gru_lm.py::test_the_first_layer_looks_up_what_it_would_multiply[changes3]",
    "tests/models/test_resnet.py::test_each_idea_can_be_taken_out[change0",
    "tests/models/test_resnet.py::test_each_idea_can_be_taken_out[change2",
    "tests/models/test_resnet.py::test_each_idea_can_be_taken_out[change4",
    "tests/models/test_resnet.py::test_hwnet_against_a_plain_restatement[False]",
    "tests/models/test_resnet.py::test_logits_are_float32_and_statistics_move[hwnet-24]",
    "tests/ops/test_bfloat16.py::test_the_bound_rejects_a_broken_gru[z]",
    "tests/ops/test_gru.py::test_equals_autodiff[shape1]",
    "tests/ops/test_gru.py::test_equals_autodiff[shape2]",
    "tests/report/test_play.py::test_nobody_is_shut_out[1440-dark]",
    "tests/inference/test_compilation.py::test_eight_devices_share_the_work_and_exchange_gradients",
    "tests/inference/test_compilation.py::test_every_seed_has_the_same_programs[resnet]",
    "tests/inference/test_compilation.py::test_the_blank_dataset_has_the_sizes_of_the_real_one[resnet",
    "tests/generation/test_generation.py::test_frequencies_are_the_models_probabilities[attention-{'",
    "tests/generation/test_generation.py::test_frequencies_are_the_models_probabilities[gru-{'",
    "tests/test_sample.py::test_the_released_models_speak[attention]",
    "tests/test_solve.py::test_other_peoples_environments",
    "tests/experiments/test_studies.py::test_activations_are_the_states_that_a_long_pass_goes_through",
    "tests/experiments/test_studies.py::test_flax_layers_are_the_same_network",
    "tests/experiments/test_studies.py::test_recurrent_layers_agree_before_they_are_timed",
    "tests/experiments/test_studies.py::test_samplers_agree_before_they_are_timed",
    "tests/experiments/test_studies.py::test_seeds_run_once_and_sum_up",
    "tests/training/test_parallel.py::test_two_processes_compute_the_numbers_of_one_device[gru]",
    "tests/training/test_recall_task.py::test_both_cells_learn_a_short_delay",
    "tests/training/test_text_task.py::test_eight_devices_reset_as_one_does[pmap]",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks the tests of STACK and AGAIN; refuses a line there that names no test."""
    for mark, places in (("stack", STACK), ("slow", AGAIN)):
        found = set()
        for item in items:
            matching = [place for place in places if item.nodeid.startswith(place)]
            found.update(matching)
            if matching:
                item.add_marker(mark)
        if config.args == ["tests"] and (stale := set(places) - found):
            raise pytest.UsageError(f"tests/conftest.py names tests that are none: {sorted(stale)}")


@pytest.fixture(scope="session", autouse=True)
def _cache_folders(tmp_path_factory) -> Iterator[None]:
    """Cache folders of this session's own, here and in every process: the user's are left alone.

    Compiled programs are kept too, since many tests and processes compile the same ones. Each worker of
    pytest-xdist has its own folder: JAX writes an entry in place, and another reader could find half of it.
    """
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder / "programs"))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
        yield


@pytest.fixture
def at_home(tmp_path, monkeypatch) -> None:
    """A home, a cache and an environment of the test's own, and no way to the network."""
    from hw.data import images, text

    for name in ("TFDS_DATA_DIR", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    nowhere = f"http://{processes.free_address()}"
    monkeypatch.setattr(images, "ARCHIVE_URL", f"{nowhere}/a.tar.gz")
    monkeypatch.setattr(text, "ARCHIVE_URL", f"{nowhere}/input.txt")


@pytest.fixture(scope="session")
def eight_devices() -> list:
    """Eight devices; the test is skipped on a GPU or TPU with fewer, where none are simulated."""
    import jax

    if len(jax.devices()) < 8:
        pytest.skip(f"needs eight devices: there are {len(jax.devices())}")
    return jax.devices()[:8]


@pytest.fixture
def tiny_config():
    """configs/resnet.py, cut down to TINY."""
    from configs import resnet

    config = resnet.get_config()
    config.update_from_flattened_dict(TINY)
    return config


@pytest.fixture(scope="session")
def hw() -> Callable[..., Any]:
    """Runs `python -m hw.COMMAND ARGUMENT…` to its end: `processes.hw`."""
    return processes.hw


@pytest.fixture(scope="session")
def launch() -> Iterator[Callable[..., processes.Process]]:
    """Starts a `processes.Process`; whatever still runs when the session ends is killed."""
    started: list[processes.Process] = []

    def launch(words: list[Any], output: Path, **options: Any) -> processes.Process:
        started.append(processes.Process(words, Path(f"{output}-{len(started)}"), **options))
        return started[-1]

    yield launch
    for process in started:
        process.close()


@pytest.fixture(scope="session")
def tiny_arguments() -> list[str]:
    """TINY as arguments of hw.train."""
    return ["--config=configs/resnet.py", *(f"--config.{k}={v}" for k, v in TINY.items())]
