"""Beam's workers do the jobs, say what went wrong, and fetch no program to run."""

import pytest

pytest.importorskip("apache_beam", reason="Apache Beam is not installed: it is the extra pretrain[beam]")

from pretrain import beam_workers, workers
from pretrain.errors import InputError

# In this process; in its threads, reached as workers on other machines are; and through a job server.
RUNNERS = {
    "direct": ("DirectRunner",),
    "threads": ("DirectRunner", ("direct_running_mode=multi_threading", "direct_num_workers=3")),
    "portable": ("PortableRunner", ("job_endpoint=embed", "environment_type=LOOPBACK")),
}
every_runner = pytest.mark.parametrize("runner", RUNNERS.values(), ids=list(RUNNERS))


STARTED: list[int] = []  # what happened in the workers, which are all in this process
DONE: list[str] = []


@pytest.fixture(autouse=True)
def nothing_happened():
    STARTED.clear()
    DONE.clear()


def start():
    STARTED.append(1)
    return work


def work(job, report):
    report(job)
    if job == "refuse":
        raise InputError("The corpus is wrong: correct it.")
    if job == "fail":
        raise LookupError("a bug")
    if job == "fail for it":
        try:
            raise InputError("What led to it.")
        except InputError as error:
            raise LookupError("a bug") from error
    if job == "stop":
        raise KeyboardInterrupt
    DONE.append(job)


def fail_to_start():
    raise InputError("There is no such task: name another.")


def run(runner, jobs, start=start):
    beam_workers.run(beam_workers.pipeline(*runner), start, jobs)


@every_runner
def test_every_job_is_done_once(runner):
    run(runner, list("abcdefgh"))
    assert sorted(DONE) == list("abcdefgh")
    assert STARTED == [1]


@every_runner
def test_wrong_input_is_said_as_the_worker_said_it(runner):
    with pytest.raises(InputError, match=r"^The corpus is wrong: correct it\.$"):
        run(runner, ["a", "refuse"])
    with pytest.raises(InputError, match=r"^There is no such task: name another\.$"):
        run(runner, ["a"], fail_to_start)


@every_runner
@pytest.mark.parametrize("job", ["fail", "fail for it"])
def test_a_failure_keeps_its_traceback(runner, job):
    with pytest.raises(Exception, match="a bug") as error:
        run(runner, [job])
    assert not isinstance(error.value, InputError)
    assert "in work\n" in str(error.getrepr(style="native"))


def test_an_interrupt_is_one():
    with pytest.raises(KeyboardInterrupt):
        run(RUNNERS["direct"], ["stop"])


def test_a_pipeline_that_was_stopped_is_not_done(monkeypatch):
    from apache_beam.runners.portability.fn_api_runner.fn_runner import RunnerResult

    monkeypatch.setattr(RunnerResult, "wait_until_finish", lambda self, duration=None: "CANCELLED")
    with pytest.raises(workers.WorkerError, match="the pipeline ended as CANCELLED"):
        run(RUNNERS["direct"], ["a"])


def test_an_interrupted_wait_cancels_the_pipeline(monkeypatch):
    from apache_beam.runners.portability.fn_api_runner.fn_runner import RunnerResult

    def interrupted(self, duration=None):
        raise KeyboardInterrupt

    cancelled = []
    monkeypatch.setattr(RunnerResult, "wait_until_finish", interrupted)
    monkeypatch.setattr(RunnerResult, "cancel", lambda self: cancelled.append(self))
    with pytest.raises(KeyboardInterrupt):
        run(RUNNERS["direct"], ["a"])
    assert len(cancelled) == 1

    def not_possible(self):
        raise NotImplementedError("this runner cannot cancel")

    monkeypatch.setattr(RunnerResult, "cancel", not_possible)
    with pytest.raises(NotImplementedError):
        run(RUNNERS["direct"], ["a"])


def test_nothing_is_fetched_and_run(monkeypatch):
    from apache_beam.runners.portability import prism_runner

    fetched = []
    monkeypatch.setattr(prism_runner, "urlopen", fetched.append)
    monkeypatch.setattr(prism_runner.PrismRunner, "run_pipeline", lambda *given: fetched.append(given))
    run(RUNNERS["direct"], ["a"])
    assert (fetched, DONE) == ([], ["a"])


@pytest.mark.parametrize(
    ("runner", "options", "message"),
    [
        ("NoSuchRunner", (), r"refuses --runner NoSuchRunner \(Unexpected pipeline runner: NoSuchRunner"),
        ("no.such.Runner", (), r"refuses --runner no\.such\.Runner \(No module named 'no'\): correct it"),
        ("apache_beam.Runner", (), r"refuses --runner apache_beam\.Runner \(.*has no attribute 'Runner'"),
        (
            "DirectRunner",
            ["direct_num_workers=x"],
            r"\(argument --direct_num_workers: invalid int value: 'x'\)",
        ),
    ],
)
def test_what_beam_does_not_know_is_refused_in_a_sentence(runner, options, message, capsys):
    with pytest.raises(InputError, match=message) as error:
        beam_workers.pipeline(runner, options)
    assert "\n" not in str(error.value)
    assert capsys.readouterr() == ("", "")


def test_options_reach_the_runner():
    from apache_beam.options.pipeline_options import DirectOptions

    options = beam_workers.pipeline("DirectRunner", ["direct_num_workers=3", "streaming"]).options
    assert options.view_as(DirectOptions).direct_num_workers == 3
    assert options.get_all_options()["streaming"] is True
