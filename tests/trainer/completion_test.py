"""completion_test.py TRIREME: bash and zsh complete every verb and option that --help shows, allowed values, fields and files."""
import functools
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

TRIREME = pathlib.Path(sys.argv.pop(1)).resolve()


def run(*arguments, **keywords):
    return subprocess.run(arguments, capture_output=True, text=True, check=True, **keywords).stdout


@functools.cache
def help_of(*path):
    """Verbs and options as the program's own help lists them."""
    verbs, options, section = [], [], ""
    for line in run(TRIREME, *path, "--help").splitlines():
        if line and not line.startswith(" "):
            section = line.split(":")[0]
        elif section == "Subcommands" and re.match(r"  \S", line):
            verbs.append(line.split()[0])
        elif re.match(r" {2,4}-", line):
            options += re.match(r" +(-[^ ]+)", line)[1].split(",")
    return verbs, options


class Bash(unittest.TestCase):
    shell = "bash"
    # What bash itself does before it calls the function: words are cut at = too.
    driver = 'eval "$SCRIPT"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _trireme; printf "%s\\n" "${COMPREPLY[@]}"'

    def complete(self, *words, folder="/"):
        flags = ["-f"] if self.shell == "zsh" else ["--norc"]
        ran = subprocess.run([self.shell, *flags, "-c", self.driver, "driver", "trireme", *words], cwd=folder, env={"SCRIPT": self.script, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
        self.assertEqual(ran.stderr, "")
        return [line for line in ran.stdout.split("\n") if line]

    @classmethod
    def setUpClass(cls):
        if not shutil.which(cls.shell):
            raise unittest.SkipTest(f"no {cls.shell} here")
        cls.script = run(TRIREME, "completion", cls.shell)

    def test_the_shell_accepts_the_script(self):
        run(self.shell, "-n", input=self.script)

    def test_every_verb_and_option(self):
        waiting, seen = [()], 0
        while waiting:
            path = waiting.pop()
            verbs, options = help_of(*path)
            waiting += [(*path, verb) for verb in verbs]
            seen += len(options)
            if verbs:
                self.assertEqual(sorted(self.complete(*path, "")), sorted(verbs))
            self.assertEqual(sorted(self.complete(*path, "-")), sorted(options), path)
        self.assertGreater(seen, 60)

    def test_a_beginning_is_completed(self):
        self.assertEqual(self.complete("gen"), ["generate"])
        self.assertEqual(self.complete("tokenizer", ""), ["train"])
        self.assertEqual(self.complete("tokenizer", "train", "--vocab"), ["--vocab-size"])

    def test_values_of_a_set(self):
        self.assertEqual(sorted(self.complete("export", "run", "--format", "")), ["gguf", "gguf-lora", "hf", "peft"])
        self.assertEqual(sorted(self.complete("export", "run", "--format", "g")), ["gguf", "gguf-lora"])
        self.assertEqual(sorted(self.complete("prepare", "text", "--format", "")), ["auto", "jsonl", "text"])
        self.assertEqual(sorted(self.complete("completion", "")), ["bash", "zsh"])

    def test_a_number_has_no_candidates(self):
        self.assertEqual(self.complete("train", "--ranks", ""), [])

    def test_fields_of_a_recipe(self):
        self.assertEqual(self.complete("train", "a.textproto", "--set", "optimizer.adamw.learning_r"), ["optimizer.adamw.learning_rate"])
        self.assertEqual(self.complete("config", "train_for.st"), ["train_for.steps"])

    def test_files_with_spaces(self):
        with tempfile.TemporaryDirectory() as folder:
            pathlib.Path(folder, "my recipe.textproto").touch()
            pathlib.Path(folder, "my run").mkdir()
            self.assertEqual(sorted(self.complete("train", "my", folder=folder)), ["my recipe.textproto", "my run"])
            self.assertEqual(sorted(self.complete("export", "--output", "my r", folder=folder)), ["my recipe.textproto", "my run"])

    def test_value_behind_an_equals_sign(self):
        self.assertEqual(self.complete("export", "--format", "=", "h"), ["hf"])


class Zsh(Bash):
    shell = "zsh"
    # The builtins of zsh's completion work only on its command line: these say what they would offer, as it would filter by the word.
    driver = r"""
      compdef() { }
      compset() { word=${word#*=} }
      offer() { local each; for each in "$@"; do [[ "$each" == ${word}* ]] && print -r -- "$each"; done; return 0 }
      compadd() { while [[ "$1" != -- ]]; do shift; done; shift; offer "$@" }
      _describe() { offer "${${(P)@[-1]}[@]%%:*}" }
      _files() { offer *(N) }
      eval "$SCRIPT"; words=("$@"); CURRENT=$#; _trireme"""

    def test_value_behind_an_equals_sign(self):
        self.assertEqual(self.complete("export", "--format=h"), ["hf"])


if __name__ == "__main__":
    unittest.main()
