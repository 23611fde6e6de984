"""Tests hw.sample and hw.score as a user runs them: their output, their errors and their escapes."""

import hashlib
import html.parser
import json
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hw import cli, generation, sample, score
from hw.cli import UserError
from hw.data.text import encode
from hw.inference import evaluation
from hw.inference import text as of_text
from hw.models.gru_lm import GRULM
from hw.training import checkpoint, saved

VOCABULARY = "\n !\"&'/<>abcdefghilnoprstué"
SIZES = {"embedding": 8, "width": 8, "depth": 1}


@pytest.fixture(scope="module")
def model():
    """Returns a tiny language model with weights so large that its texts differ."""
    module = GRULM(vocab_size=len(VOCABULARY), dtype=jnp.dtype("float32"), **SIZES)
    shapes = jax.eval_shape(
        lambda: module.init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32), None, train=False)
    )
    rng = np.random.default_rng(0)
    return module, jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


def write_run(folder, variables, vocabulary=VOCABULARY, task="text"):
    folder.mkdir()
    config = {"task": task, "model": {"name": "gru_lm", "dtype": "auto", "gru_lm": SIZES}}
    (folder / "config.json").write_text(cli.to_json(config))
    dataset = {"source": "file", "vocabulary": vocabulary}
    (folder / "summary.json").write_text(cli.to_json({"dataset": dataset}))
    checkpoint.save_params(folder / "params.npz", variables)
    return folder


@pytest.fixture
def run(model, tmp_path):
    return write_run(tmp_path / "run", model[1])


@pytest.fixture
def write(run, capsys):
    """Runs hw.sample on the tiny run; returns its output."""

    def write(*arguments):
        assert sample.main([f"--workdir={run}", *arguments]) == 0
        return capsys.readouterr().out

    return write


@pytest.fixture
def mistake(capsys):
    """Runs a command that must fail; returns its one-line error."""

    def mistake(module, *arguments):
        with pytest.raises(SystemExit) as stopped:
            cli.run(module.main, list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert stopped.value.code == 2 and out == ""
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return line

    return mistake


# --- hw.sample ---


def test_prompt_continuation_and_one_newline(write, model):
    out = write("--prompt=the cat", "--length=20", "--seed=3")
    prompt = encode("the cat", VOCABULARY)[0]
    (ids,) = generation.sample(*model, prompt, length=20, temperature=0.8, seed=3)
    assert out == "the cat" + "".join(VOCABULARY[i] for i in ids) + "\n"
    assert write("--prompt=the cat", "--length=20", "--seed=3", "--no-echo") == out.removeprefix("the cat")
    assert write("--prompt=the cat", "--length=0") == "the cat\n"


def test_the_defaults(write):
    out = write()
    assert len(out) == 1 + 500 + 1 and out[0] == "\n"
    defaults = ["--prompt=\n", "--length=500", "--temperature=0.8", "--top-k=0", "--top-p=1"]
    assert write(*defaults, "--num-samples=1", "--seed=0", "--unknown=error") == out
    assert write("--no-echo", "--length=70") == out[1:71] + "\n"


def test_the_options_reach_the_model(write):
    plain = write("--length=100")
    for option in ("--temperature=2", "--top-k=2", "--top-p=0.5", "--seed=1", "--temperature=0"):
        assert write("--length=100", option) != plain
    assert write("--length=9", "--top-k=1") == write("--length=9", "--temperature=0", "--seed=9")


def test_samples_are_separated_and_the_same_alone(write, monkeypatch):
    monkeypatch.setattr(of_text, "SAMPLES_AT_ONCE", 2)
    out = write("--prompt=an ", "--length=30", "--num-samples=3", "--temperature=1.5")
    texts = out.removesuffix("\n").split("\n" + "-" * 10 + "\n")
    assert len(texts) == len(set(texts)) == 3
    assert all(len(text) == 33 and text.startswith("an ") for text in texts)
    alone = write("--prompt=an ", "--length=30", "--temperature=1.5")
    assert alone == texts[0] + "\n"


def test_a_stream_ends_with_the_very_same_bytes(run, write, capsys, monkeypatch):
    plain = write("--length=300", "--prompt=on a")
    written = []
    for stop in (None, plain[130:137], plain[67:71]):  # 69 is the border of two chunks
        options = ["--length=300", "--prompt=on a"] + ([f"--stop={stop}"] if stop else [])
        expected = write(*options)
        assert expected == (plain[: plain.index(stop, 4)] + "\n" if stop else plain)
        assert write("--stream", *options) == expected
        written.append(expected)
    assert len(set(written)) == 3
    # With --stream it prints while it draws.
    pieces = []
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: pieces.append((args, kwargs)))
    sample.main([f"--workdir={run}", "--stream", "--length=300"])
    assert len(pieces) == 1 + 5 + 1 and all(kwargs["flush"] for _, kwargs in pieces[:-1])


def test_stop_ends_every_sample_before_it(write):
    options = ["--length=200", "--num-samples=4", "--no-echo"]
    whole = write(*options).removesuffix("\n").split("\n" + "-" * 10 + "\n")
    texts = write(*options, "--stop=e").removesuffix("\n").split("\n" + "-" * 10 + "\n")
    assert texts == [text.split("e")[0] for text in whole] and texts != whole


def test_a_prompt_file_is_taken_as_it_is(write, tmp_path):
    file = tmp_path / "prompt"
    file.write_bytes(b"\xef\xbb\xbf\ncaf\xc3\xa9\n\n")
    assert write(f"--prompt-file={file}", "--length=5").startswith("\ncafé\n\n")
    file.write_bytes(b"the \r\n cat")
    assert write(f"--prompt-file={file}", "--unknown=skip", "--length=0") == "the \n cat\n"
    file.write_bytes(b"the cat" * 90)  # longer than two windows
    assert len(write(f"--prompt-file={file}", "--length=5")) == 630 + 5 + 1


def test_unknown_characters_are_named_with_their_places(run, mistake):
    line = mistake(sample, f"--workdir={run}", "--prompt=the Жat Ж {0} \u202e" + "…" * 9)
    for named in ("'Ж' at 4, 8", "'{' at 10", "U+202E at 14", "'…' at 15, 16, 17, 18, 19 and 4 more"):
        assert named in line
    assert "--unknown=skip" in line
    # A combining accent would change the quote before it.
    line = mistake(sample, f"--workdir={run}", "--prompt=e\u0301\x07")
    assert "U+0301 at 1" in line and r"'\x07' at 2" in line
    line = mistake(sample, f"--workdir={run}", "--prompt=" + "".join(map(chr, range(0x400, 0x440))))
    assert "54 other characters" in line


def test_unknown_characters_are_skipped(write, run, mistake):
    skip = ("--unknown=skip", "--length=40")
    assert write("--prompt=Xthe YcatZ", *skip) == write("--prompt=the cat", *skip)
    # No known character is left, so the text starts from a newline, which is not printed.
    silent = write("--no-echo", "--length=40")
    assert write("--prompt=XYZ", *skip) == write("--prompt=", "--length=40") == silent
    # --unknown=skip must not change the stop text.
    line = mistake(sample, f"--workdir={run}", "--stop=aX", "--unknown=skip")
    assert "the stop text" in line and "'X' at 1" in line and "--unknown" not in line


def test_a_vocabulary_without_newline_starts_from_its_first_symbol(model, tmp_path, capsys):
    folder = write_run(tmp_path / "run", model[1], vocabulary="#" + VOCABULARY[1:])
    texts = []
    for arguments in ([], ["--prompt="], ["--prompt=#", "--no-echo"]):
        sample.main([f"--workdir={folder}", "--length=40", *arguments])
        texts.append(capsys.readouterr().out)
    assert len(texts[0]) == 41 and texts[0] == texts[1] == texts[2]


def test_the_released_model_is_the_default(run, monkeypatch, capsys, tmp_path):
    asked = []
    monkeypatch.setattr(saved, "released", lambda name: asked.append(name) or run)
    (tmp_path / "text").write_text("the cat")
    for module, first in ((sample, "--length=1"), (score, str(tmp_path / "text"))):
        for source in ([], ["--model=gru"], ["--model=attention"]):
            assert module.main([first, *source]) == 0
    assert asked == ["gru", "gru", "attention"] * 2


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ("--temperature=-1", "--temperature=-1"),
        ("--temperature=nan", "nan"),
        ("--temperature=inf", "inf"),
        ("--temperature=warm", "warm"),
        ("--top-p=0", "(0, 1]"),
        ("--top-p=1.1", "1.1"),
        ("--top-p=nan", "nan"),
        ("--top-k=-1", "--top-k=-1"),
        ("--length=1000000000000", "at most 10,000,000"),
        ("--num-samples=1000000000", "at most 1,000,000"),
        ("--length=-1", "--length=-1"),
        ("--length=1.5", "1.5"),
        ("--num-samples=0", "--num-samples=0"),
        ("--seed=-1", "--seed=-1"),
        ("--seed=4294967296", "2^32"),
        ("--stop=", "--stop"),
        ("--unknown=drop", "drop"),
        ("--model=gpt", "gpt"),
        ("--model=gru", "different vocabularies of 27 and 65 symbols"),
        ("--weights=1,1", "2 numbers for 1 models"),
        ("--weights=0", "at least 0"),
        ("--weights=1,-1", "at least 0"),
        ("--weights=nan", "at least 0"),
        ("--weights=a", "at least 0"),
        ("--weights=", "at least 0"),
        ("--temp=1", "--temp"),
        ("--prompt-file=/none", "/none"),
        ("stray", "stray"),
    ],
)
def test_what_sample_refuses(run, mistake, option, named):
    assert named in mistake(sample, f"--workdir={run}", option)


def test_what_sample_refuses_in_combination(run, mistake, tmp_path):
    here = f"--workdir={run}"
    assert "--num-samples" in mistake(sample, here, "--stream", "--num-samples=2")
    assert "not allowed with" in mistake(sample, here, "--prompt=a", f"--prompt-file={tmp_path}")
    assert str(tmp_path) in mistake(sample, here, f"--prompt-file={tmp_path}")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    line = mistake(sample, here, f"--prompt-file={tmp_path / 'latin'}")
    assert "latin" in line and "offset 3" in line and "0xe9" in line


@pytest.mark.parametrize("module", [sample, score])
def test_folders_that_hold_no_language_model(module, model, mistake, tmp_path):
    (tmp_path / "text").write_text("the cat")
    first = [tmp_path / "text"] if module is score else []
    assert "none" in mistake(module, *first, f"--workdir={tmp_path / 'none'}")
    images = write_run(tmp_path / "images", model[1], task="images")
    assert "task images, not of task text" in mistake(module, *first, f"--workdir={images}")
    silent = write_run(tmp_path / "silent", model[1], vocabulary="")
    assert "no dataset.vocabulary" in mistake(module, *first, f"--workdir={silent}")


# --- Mixtures ---


@pytest.fixture
def second(model, tmp_path):
    """Returns another tiny run with the same vocabulary."""
    return write_run(tmp_path / "second", jax.tree.map(lambda x: -x, model[1]))


def test_a_mixture_averages_probabilities(run, second, tmp_path, capsys):
    (tmp_path / "text").write_text("the cat\n is a bat " * 30)
    here = [f"--workdir={run}", f"--workdir={second}"]

    def nats(*arguments):
        per_char = f"--per-char={tmp_path / 'rows.json'}"
        assert score.main([str(tmp_path / "text"), "--force", per_char, *arguments]) == 0
        found = json.loads(capsys.readouterr().out)
        return found, np.array([r["nats"] for r in json.loads((tmp_path / "rows.json").read_text())[1:]])

    (_, first), (_, other) = (nats(folder) for folder in here)
    for weights, share in (([], 0.5), (["--weights=0.9,0.1"], 0.9), (["--weights=1,3"], 0.25)):
        report, mixed = nats(*here, *weights)
        expected = -np.log(share * np.exp(-first) + (1 - share) * np.exp(-other))
        np.testing.assert_allclose(mixed, expected, atol=2e-5)
        assert report["nats_per_character"] == pytest.approx(expected.mean(), abs=1e-5)
        assert [(of["name"], of["weight"]) for of in report["models"]] == [
            ("run", pytest.approx(share)),
            ("second", pytest.approx(1 - share)),
        ]
        assert {of["params"] for of in report["models"]} == {sum(map(np.size, jax.tree.leaves(_params(run))))}


def _params(folder):
    return saved.load_run(folder, print).variables


def test_a_mixture_writes(run, second, write, capsys):
    plain = write("--length=200")
    assert write("--length=200", f"--workdir={second}", "--weights=1,0") == plain
    mixed = write("--length=200", f"--workdir={second}")
    assert mixed != plain and len(mixed) == len(plain)
    assert write("--length=200", "--stream", f"--workdir={second}") == mixed


def test_a_mixture_needs_one_vocabulary_and_few_models(model, run, mistake, tmp_path):
    other = write_run(tmp_path / "other", model[1], vocabulary="#" + VOCABULARY[1:])
    line = mistake(sample, f"--workdir={run}", f"--workdir={other}")
    assert f"{run} and {other}" in line and r"such as '\n': only models of one vocabulary" in line
    turned = write_run(tmp_path / "turned", model[1], vocabulary=VOCABULARY[::-1])
    assert "different vocabularies" in mistake(sample, f"--workdir={run}", f"--workdir={turned}")
    assert "33 models: at most 32" in mistake(sample, *[f"--workdir={run}"] * 33)


# --- hw.score ---


@pytest.fixture
def rate(run, tmp_path, capsys):
    """Runs hw.score on a text; returns its output, parsed as JSON."""

    def rate(text, *arguments):
        file = tmp_path / "text <b>&.txt"
        file.write_text(text, encoding="utf-8", newline="")
        assert score.main([str(file), f"--workdir={run}", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return rate


@pytest.mark.parametrize("protocol", generation.PROTOCOLS)
def test_score_prints_the_mean_of_all_characters_but_the_first(rate, model, protocol):
    text = "the cat\n is a bat " * 30
    report = rate(text, f"--protocol={protocol}")
    *_, nats = generation.score(*model, encode(text, VOCABULARY)[0], protocol)
    mean = nats.mean(dtype=float)
    assert report == {
        "protocol": protocol,
        "characters": len(text) - 1,
        "nats_per_character": pytest.approx(mean),
        "bits_per_character": pytest.approx(mean / math.log(2)),
        "perplexity": pytest.approx(math.exp(mean)),
        "unknown": [],
    }


def test_score_learns_and_counts(rate, model, run, mistake, tmp_path):
    text = "the cat\n is a bat " * 30
    ids = encode(text, VOCABULARY)[0]
    *_, stateful = generation.score(*model, ids, "stateful")
    *_, dynamic = generation.score_dynamically(*model, ids)
    for protocol, nats in (("stateful", stateful), ("dynamic", dynamic)):
        report = rate(text, f"--protocol={protocol}")
        assert report["nats_per_character"] == pytest.approx(nats.mean(dtype=float), abs=1e-5)
        assert "counts" not in report
        report = rate(text, f"--protocol={protocol}", "--counts")
        mixed = generation.with_counts(nats, ids, len(VOCABULARY)).mean(dtype=float)
        assert report["nats_per_character"] == pytest.approx(mixed, abs=1e-5) and report["counts"] is True
        assert report["protocol"] == protocol and mixed < nats.mean() / 2
    assert dynamic.mean() < stateful.mean()
    page = tmp_path / "page.html"
    rate(text, "--protocol=dynamic", "--counts", f"--per-char={page}")
    assert "dynamic with counts" in page.read_text()
    for options in ([], ["--protocol=cold256"]):
        assert "--protocol=stateful" in mistake(
            score, tmp_path / "text <b>&.txt", f"--workdir={run}", "--counts", *options
        )


def test_score_skips_and_names_unknown_characters(rate, run, mistake, tmp_path):
    report = rate("\ufeffthe XcaXt Ж", "--unknown=skip")
    assert report["unknown"] == [
        {"character": "X", "count": 2, "first_position": 4},
        {"character": "Ж", "count": 1, "first_position": 10},
    ]
    assert report["characters"] == 7
    assert report["nats_per_character"] == rate("the cat ")["nats_per_character"]
    line = mistake(score, tmp_path / "text <b>&.txt", f"--workdir={run}", "--per-char=/none/x.html")
    assert "there is no folder /none" in line


def test_what_score_refuses(run, mistake, tmp_path):
    here = f"--workdir={run}"
    file = tmp_path / "text"
    file.write_text("the cat X")
    assert "'X' at 8" in mistake(score, file, here)
    assert "FILE" in mistake(score, here)
    assert str(tmp_path / "none") in mistake(score, tmp_path / "none", here)
    assert str(tmp_path) in mistake(score, tmp_path, here)
    assert "warm" in mistake(score, file, here, "--protocol=warm")
    assert ".html or .json" in mistake(score, file, here, "--per-char=x.txt")
    (tmp_path / "x.html").mkdir()
    file.write_text("the cat")
    assert "x.html" in mistake(score, file, here, f"--per-char={tmp_path / 'x.html'}")
    for text in ("", "a", "\ufeffa"):
        file.write_text(text)
        assert "two characters" in mistake(score, file, here)
    file.write_text("aX")
    assert "two characters" in mistake(score, file, here, "--unknown=skip")
    file.write_bytes(b"the\xff cat")
    line = mistake(score, file, here)
    assert "offset 3" in line and "0xff" in line


def test_per_character_json(rate, tmp_path):
    file = tmp_path / "out.json"
    report = rate('the "cat"\n', f"--per-char={file}")
    rows = json.loads(file.read_text())
    assert "".join(row["character"] for row in rows) == 'the "cat"\n'
    assert rows[0]["nats"] is None and all(row.keys() == {"character", "nats"} for row in rows)
    assert np.mean([row["nats"] for row in rows[1:]]) == pytest.approx(report["nats_per_character"])


class Page(html.parser.HTMLParser):
    """A parser that collects a page's tags, and the text, classes and titles of the spans in <pre>."""

    def __init__(self, content):
        super().__init__()
        self.tags, self.spans, self._inside = set(), [], False
        self.feed(content)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._inside |= tag == "pre"
        if self._inside and tag == "span":
            attributes = dict(attributes)
            self.spans.append([attributes.get("class", ""), attributes["title"], ""])

    def handle_endtag(self, tag):
        self._inside &= tag != "pre"

    def handle_data(self, data):
        if self._inside:
            self.spans[-1][2] += data


TEXT = "the <script>alert(\"r&b\")</script>\n'é' &lt;cat&gt;\n"


def test_per_character_page(model, tmp_path, capsys):
    classes = "".join(sorted(set(TEXT) | {"\r"}))
    classes += "".join(chr(0x4E00 + i) for i in range(len(VOCABULARY) - len(classes)))
    folder = write_run(tmp_path / "run", model[1], vocabulary=classes)
    name = tmp_path / "<script>x<b> & 'y'.txt"
    name.write_text(TEXT + "\r<X>", newline="")
    page, rows = tmp_path / "page.html", tmp_path / "rows.json"
    for file in (page, rows):
        score.main([str(name), f"--workdir={folder}", "--unknown=skip", f"--per-char={file}"])
    content = page.read_text(encoding="utf-8")
    read = Page(content)
    # No part of the text or of its name became markup, and the page loads no other file.
    assert read.tags == {
        *("html", "head", "meta", "title", "style", "body", "h1", "table", "tr", "th", "td", "p", "pre"),
        *("span", "i"),
    }
    assert "<script" not in content and "http" not in content and "url(" not in content
    assert "Surprise of &lt;script&gt;x&lt;b&gt; &amp; &#x27;y&#x27;.txt" in content
    shown = "".join(text for _, _, text in read.spans)
    assert shown == (TEXT + "\r<>").replace("\n", "↵\n").replace("\r", "\\r")
    assert "left out, unknown" in content and "&#x27;X&#x27;: 1 times" in content
    assert "prefers-color-scheme: dark" in content
    # The background shows the bits, and characters with many bits are underlined.
    given, *others = zip(read.spans, json.loads(rows.read_text()), strict=True)
    assert given[0][:2] == ["", "given, not predicted"]
    for (style, title, _), row in others:
        bits = row["nats"] / math.log(2)
        assert style.split() == [f"b{min(int(bits), 8)}"] + ["u"] * (bits >= 5)
        assert title.startswith(f"{bits:.2f} bits, probability {math.exp(-row['nats']):.2g}")
    assert {" u" in style for (style, *_), _ in others} == {True, False}


# --- The released model ---


@pytest.mark.parametrize("model", ["gru", "attention"])
def test_the_released_models_speak(hw, model):
    said = []
    for _ in range(2):
        done = hw("sample", f"--model={model}", "--prompt=ROMEO:", "--length=80")
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said[0] == said[1] and said[0].startswith("ROMEO:") and len(said[0]) == 6 + 80 + 1
    assert len(set(said[0])) > 10, "it repeats itself"


def test_releases_are_small_and_say_how_well_they_do():
    for folder in saved.released("gru").parent.iterdir():
        assert (folder / "params.npz").stat().st_size < 10_000_000
        summary = json.loads((folder / "summary.json").read_text())
        config = (folder / "config.json").read_bytes()
        assert hashlib.sha256(config).hexdigest() == summary["config_sha256"]
        if summary["task"] == "text":
            # The released weights have half precision, which changes the score very little.
            report = json.loads((folder / "evaluation.json").read_text())
            assert report["nats_cold256"] == pytest.approx(summary["val_nats_cold256"], abs=1e-3)
            samples = (folder / "samples.txt").read_text()
            for temperature in (0.5, 0.8, 1.0):
                assert f"--temperature={temperature} --seed=0\nROMEO:" in samples


@pytest.mark.slow
def test_the_released_model_does_as_well_as_it_says():
    folder = saved.released("gru")
    try:
        found = evaluation.evaluate(folder, data_dir="", batch_size=0)
    except UserError as missing:
        pytest.skip(str(missing))
    said = json.loads((folder / "evaluation.json").read_text())
    for name in ("nats_cold256", "nats_stateful"):
        assert found[name] == pytest.approx(said[name], abs=1e-4)


# --- Files that are read ---


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "missing", "huge", "latin-1"])
def test_a_prompt_and_a_text_are_regular_bounded_files(tmp_path, kind):
    path = tmp_path / "a.txt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**40)  # sparse
    elif kind == "latin-1":
        path.write_bytes("Größe".encode("latin-1"))
    with pytest.raises(UserError, match=r"a\.txt"):
        sample.main([f"--prompt-file={path}"])
    with pytest.raises(UserError, match=r"a\.txt"):
        score.main([str(path)])


def test_logits_that_are_not_finite_give_no_text(model):
    module, variables = model
    overflowing = jax.tree.map(lambda x: np.full_like(x, np.inf), variables)
    for temperature in (0.0, 0.8):
        with pytest.raises(UserError, match="nan or inf"):
            generation.sample(module, overflowing, np.zeros(3), length=2, temperature=temperature)
