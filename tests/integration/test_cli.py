"""The command line as people run it: a process, its two streams, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.cli import VERBS, cli

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "pydantic", "rich", "jinja2", "numpy", "matplotlib")

TINY = {
    "model_type": "llama",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def gpumem(
    *arguments: str, stdin: str | bytes = b"", cwd: Path | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=cwd,
        timeout=120,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def refused(code: int, *arguments: str, **more: Any) -> str:
    """Run a command that must fail with one sentence and nothing on standard output."""
    done = gpumem(*arguments, **more)
    assert done.returncode == code, done
    assert done.stdout == ""
    assert done.stderr.startswith("gpumem: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert len(done.stderr) < 600
    return done.stderr


def test_help_lists_the_verbs_and_imports_none() -> None:
    done = gpumem("--help")
    assert done.returncode == 0
    assert [verb for verb in VERBS if f"\n  {verb} " not in done.stdout] == []
    assert gpumem("-h").stdout == done.stdout
    assert gpumem().stdout == done.stdout
    assert gpumem().returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_a_page(verb: str) -> None:
    command = cli.get_command(None, verb)  # type: ignore[arg-type]
    assert command is not None
    assert command.name == verb
    assert command.help
    assert f"gpumem {verb}" in (ROOT / "docs" / "verbs" / f"{verb}.md").read_text()


def test_completion() -> None:
    done = gpumem(
        _GPUMEM_COMPLETE="bash_complete", COMP_WORDS="gpumem estimate --opt", COMP_CWORD="2"
    )
    assert "--optimizer" in done.stdout


def test_version() -> None:
    assert gpumem("--version").stdout.startswith("gpumem ")


def test_estimate_for_people() -> None:
    done = gpumem("estimate", "Llama-3.2-1B", "--task", "training", "--gpu", "L4")
    assert done.returncode == 0, done.stderr
    assert "Llama-3.2-1B full bf16" in done.stdout
    assert "\npeak " in done.stdout
    assert "L4 (23034 MiB): " in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_estimate_json_is_one_object_on_one_line() -> None:
    done = gpumem("estimate", "Llama-3.2-1B", "--json")
    data = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert data["source"] == "architecture"
    assert data["schema_version"] == 1
    assert data["parameters"]["total"] == 1_235_814_400
    assert data["case"]["sequence_length"] == 1024
    assert sum(data["components"].values()) == data["peak"]["allocated_bytes"]


def test_article_formulas() -> None:
    done = gpumem("estimate", "Meta-Llama-3-8B", "-s", "2048", "--formulas", "article", "--json")
    data = json.loads(done.stdout)
    assert data["source"] == "article"
    assert data["peak"]["allocated_bytes"] == 2 * 8_030_261_248 + 2**30 + 3_825_205_248


def test_quiet_before_or_after_the_verb() -> None:
    before = gpumem("-q", "estimate", "gpt2")
    after = gpumem("estimate", "gpt2", "-q")
    assert before.stdout == after.stdout
    assert before.stdout.startswith("peak ")


def test_check_turns_a_misfit_into_exit_code_1() -> None:
    arguments = ("estimate", "Meta-Llama-3-70B", "--gpu", "L4")
    assert gpumem(*arguments).returncode == 0
    done = gpumem(*arguments, "--check")
    assert done.returncode == 1
    assert "does not fit" in done.stdout
    assert done.stderr == ""
    assert gpumem("estimate", "gpt2", "--gpu", "L4", "--check").returncode == 0


def test_estimate_imports_nothing_heavy() -> None:
    code = (
        "import sys; from app.cli import main; code = main(sys.argv[1:]); "
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr); "
        "sys.exit(code)"
    )
    for formulas in ("architecture", "article"):
        done = subprocess.run(
            [sys.executable, "-c", code, "estimate", "gpt2", "--formulas", formulas, "--gpu", "T4"],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert done.returncode == 0, done.stderr
        assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["estimat"], "did you mean estimate?"),
        (["nonesuch"], "there is no verb 'nonesuch'"),
        (["estimate"], "no model given"),
        (["estimate", "gpt2", "--nonesuch"], "no such option"),
        (["estimate", "gpt2", "-b"], "requires an argument"),
        (["estimate", "gpt2", "more"], "unexpected extra argument"),
        (["estimate", "gpt2", "--formulas", "x"], "'x' is not one of"),
        (["estimate", "gpt2", "--check"], "--check needs a card"),
        (["estimate", "lama-3.2-1b"], "did you mean meta-llama/Llama-3.2-1B"),
        (["estimate", "someone/unheard-of"], "`hf download` it"),
        (["estimate", "nowhere/config.json"], "there is no configuration file"),
        (["estimate", "gpt2", "-b", "0"], "batch_size is 0"),
        (["estimate", "gpt2", "-b", "two"], "batch_size is 'two'"),
        (["estimate", "gpt2", "-s", "1e3"], "sequence_length is '1e3'"),
        (["estimate", "gpt2", "--dtype", "int4"], "dtype is 'int4'"),
        (["estimate", "gpt2", "--gpu", "Voodoo"], "gpu is 'Voodoo'"),
        (["estimate", "gpt2", "--task", "training", "--quantization", "nf4"], "method lora"),
        (["estimate", "--case", "/nonexistent.json"], "cannot be read"),
        (["estimate", "--cases", "/nonexistent.jsonl"], "cannot be read"),
        (["trace", "gpt2", "-b", "0"], "batch_size is 0"),
        (["trace", "nonesuch"], "not in the catalogue"),
        (["profile", "gpt2", "-b", "0"], "batch_size is 0"),
        (["profile", "nonesuch"], "not in the catalogue"),
        (["profile", "gpt2", "--timeout", "0"], "--timeout"),
        (["models", "nonesuch"], "no model of the catalogue matches"),
        (["gpus", "nonesuch"], "no card of the catalogue matches"),
        (["doctor", "nonesuch"], "unexpected extra argument"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments: list[str], says: str) -> None:
    assert says in refused(2, *arguments)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 10**15}, "hidden_size"),
        ({"hidden_size": 64.5}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_hidden_layers": True}, "num_hidden_layers"),
        ({"vocab_size": []}, "vocab_size"),
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"num_attention_heads": 4, "num_key_value_heads": 3}, "num_key_value_heads"),
        ({"model_type": None}, "model_type"),
        ({"model_type": "never-heard-of"}, "never-heard-of"),
    ],
)
def test_wrong_configurations(tmp_path: Path, change: dict[str, Any], says: str) -> None:
    config = {key: value for key, value in {**TINY, **change}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    line = json.dumps({"model": str(tmp_path)})
    assert says in refused(2, "estimate", str(tmp_path))
    assert says in refused(2, "estimate", str(tmp_path), "--formulas", "article")
    for verb in ("trace", "profile"):
        if change.get("model_type") != "never-heard-of":  # others may know more types
            assert says in refused(2, verb, str(tmp_path))
            assert says in gpumem(verb, "--cases", "-", stdin=line).stdout


def test_configuration_cut_in_half(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY)[:40])
    message = refused(2, "estimate", str(path))
    assert "is not JSON" in message
    assert "column" in message


def test_configuration_from_file_folder_and_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    case = json.dumps({"model": TINY})
    totals = {
        json.loads(done.stdout)["parameters"]["total"]
        for done in (
            gpumem("estimate", str(tmp_path), "--json"),
            gpumem("estimate", "./config.json", "--json", cwd=tmp_path),
            gpumem("estimate", "--case", "-", "--json", stdin=case),
        )
    }
    assert len(totals) == 1


CASES = """\
{"model": "gpt2"}
{"model": "gpt2", "batch_size": 0}
this is not JSON

{"model": "nonesuch"}
[1, 2]
{"model": "gpt2", "task": "training", "batch_size": 2}
"""


def test_cases_are_answered_in_order(tmp_path: Path) -> None:
    path = tmp_path / "cases.jsonl"
    path.write_text(CASES)
    done = gpumem("estimate", "--cases", str(path))
    assert done.returncode == 3
    assert done.stderr == ""
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == 6
    assert [answer["case"] for answer in answers[1:5]] == [
        {"model": "gpt2", "batch_size": 0},
        "this is not JSON",
        {"model": "nonesuch"},
        [1, 2],
    ]
    for answer, says in zip(
        answers[1:5], ["batch_size is 0", "not JSON", "catalogue", "JSON object"], strict=True
    ):
        assert list(answer) == ["case", "error"]
        assert list(answer["error"]) == ["message"]
        assert says in answer["error"]["message"]
    assert answers[0]["peak"]["allocated_bytes"] > 0
    assert answers[5]["case"]["batch_size"] == 2
    assert gpumem("estimate", "--cases", "-", "--json", stdin=CASES).stdout == (
        done.stdout.replace(f"cases '{path}'", "standard input")
    )


def test_cases_that_all_succeed() -> None:
    done = gpumem("estimate", "--cases", "-", stdin='{"model": "gpt2"}\n' * 3)
    assert done.returncode == 0
    assert len(set(done.stdout.splitlines())) == 1


def test_cases_that_read_but_cannot_be_answered() -> None:
    done = gpumem("estimate", "--cases", "-", stdin='{"model": "nonesuch"}')
    assert done.returncode == 3
    assert "error" in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("stdin", "lines"), [("", 0), ("\n\n", 0), ("no case\n", 1), ('{"model": 3}\n[]\n', 2)]
)
def test_no_line_that_is_a_case(stdin: str, lines: int) -> None:
    done = gpumem("estimate", "--cases", "-", stdin=stdin)
    assert done.returncode == 2
    assert done.stderr == "gpumem: no line of standard input could be read as a case\n"
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == lines
    assert all("error" in answer for answer in answers)


def test_profile_without_a_gpu() -> None:
    message = refused(4, "profile", "gpt2", CUDA_VISIBLE_DEVICES="")
    assert "no CUDA GPU here" in message
    assert "gpumem trace" in message
    assert "GPU" in refused(4, "profile", "--cases", "-", stdin=CASES.splitlines()[0],
                            CUDA_VISIBLE_DEVICES="")  # fmt: skip


@pytest.mark.parametrize("verb", ["trace", "profile"])
def test_without_torch(verb: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from app.cli import main

    monkeypatch.setattr("app.needs.find_spec", lambda name: None if name == "torch" else name)
    assert main([verb, "gpt2"]) == 4
    assert "pip install 'gpumem[profile]'" in capsys.readouterr().err


def test_trace_says_that_it_is_simulated(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    line = json.dumps({"model": str(tmp_path), "task": "training", "sequence_length": 32})
    done = gpumem("trace", "--cases", "-", stdin=f"{line}\n{{}}\n")
    assert done.returncode == 3, done.stderr
    first, second = (json.loads(text) for text in done.stdout.splitlines())
    assert first["source"] == "trace"
    assert first["peak"]["reserved_bytes"] >= first["peak"]["allocated_bytes"]
    assert sum(first["components"].values()) == first["peak"]["allocated_bytes"]
    assert "names no model" in second["error"]["message"]


def test_models() -> None:
    done = gpumem("models", "llama-3.2")
    assert done.returncode == 0
    assert "meta-llama/Llama-3.2-1B" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    rows = json.loads(gpumem("models", "--json").stdout)
    known = {row["model_type"] for row in rows if row["architecture"]}
    assert known >= {"llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2"}
    assert gpumem("models", "-q", "gpt2-xl").stdout == "openai-community/gpt2-xl\n"


def test_gpus() -> None:
    done = gpumem("gpus")
    assert "81559" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    rows = json.loads(gpumem("gpus", "h100", "--json").stdout)
    assert rows[0]["memory_mib"] == 81559
    assert all(row["source"] for row in rows)


def test_doctor() -> None:
    done = gpumem("doctor", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0
    assert "what works here" in done.stdout
    assert str(Path.home()) not in done.stdout
    data = json.loads(gpumem("doctor", "--json", CUDA_VISIBLE_DEVICES="").stdout)
    assert data["works"]["estimate"] is True
    assert data["works"]["profile"] is False
    assert "CUDA_VISIBLE_DEVICES" in data["problems"]["profile"]


def test_full_disk_on_output() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "app", "estimate", "gpt2", "-v"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=ROOT,
        )
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
    assert b"No space left" in done.stderr


def test_reader_that_goes_away() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "app", "models"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_interrupt(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from app.cli import main

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("app.commands.estimate.answer", stop)
    assert main(["estimate", "gpt2"]) == 130
    assert capsys.readouterr().err == "gpumem: interrupted\n"


def test_undecodable_argument() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "app", "estimate", b"caf\xe9"], capture_output=True, cwd=ROOT
    )
    assert done.returncode == 2
    assert done.stderr.startswith(b"gpumem: model 'caf")
